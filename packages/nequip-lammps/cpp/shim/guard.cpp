// LAMMPS' version says the same for every update of a stable release, but its classes may differ between them; used with
// another layout they would crash or compute nonsense. So the classes themselves are compared, before they are used.
// SPDX-License-Identifier: GPL-2.0-only
#include "guard.h"

#include <dlfcn.h>

#include <cstdint>
#include <new>
#include <vector>

#include "atom.h"
#include "comm.h"
#include "compute.h"
#include "lammps.h"
#include "neighbor.h"
#include "pair.h"

extern "C" int lammps_extract_setting(void *, const char *) __attribute__((weak));

using namespace LAMMPS_NS;

namespace nequip_lammps {
namespace {

constexpr unsigned char poison = 0xA5;
constexpr int pair_functions = 14, compute_functions = 2;  // virtual ones that the host's library defines

struct ProbePair : Pair {
  explicit ProbePair(LAMMPS *lammps) : Pair(lammps) {}
  void compute(int, int) override {}
  void settings(int, char **) override {}
  void coeff(int, char **) override {}
  // What the host's constructor sets, spread from the first to the last member.
  bool as_made() const {
    return comm_forward == 0 && cutsq == nullptr && setflag == nullptr && suffix_flag == 0 && list == nullptr &&
           allocated == 0 && datamask_read == (decltype(datamask_read)) ~0ull &&
           datamask_modify == (decltype(datamask_modify)) ~0ull && map == nullptr && nelements == 0 &&
           maxeatom == 0 && maxvatom == 0 && maxcvatom == 0 && copymode == 0;
  }
};

struct ProbeCompute : Compute {
  ProbeCompute(LAMMPS *lammps, char **arg) : Compute(lammps, 3, arg) {}
  void init() override {}
  // No pointer is followed: in another layout it is none.
  bool as_made() const {
    return igroup == 0 && groupbit == 1 && vector == nullptr && array_atom == nullptr && peratom_flag == 0 &&
           peatomflag == 0 && timeflag == 0 && dynamic_group_allow == 1 &&
           datamask_read == (decltype(datamask_read)) ~0ull && copymode == 0 && kokkosable == 0 && vbiasall == nullptr;
  }
};

// Slots of the probe's table that the host's library fills, as many as `least`, the number of functions that the class
// defines outside its header: each must be the same slot of the host's own table.
std::string compare_tables(void *probe, const char *symbol, int least, const char *what) {
  auto host = static_cast<void **>(dlsym(RTLD_DEFAULT, symbol));
  if (!host) return "";  // a static build hides it; the layouts are compared below
  host += 2;
  auto mine = *static_cast<void ***>(probe);
  Dl_info of_host, of_mine;
  if (!dladdr(host, &of_host)) return "";
  int compared = 0;
  for (int k = 2; k < 96; ++k) {
    if (!dladdr(mine[k], &of_mine)) break;
    if (of_mine.dli_fbase != of_host.dli_fbase) continue;
    if (mine[k] != host[k]) return std::string("its class ") + what + " has other virtual functions";
    if (++compared == least) break;
  }
  return compared < least ? std::string("its class ") + what + " can not be compared" : "";
}

// Construct a probe in poisoned memory; what lies behind our idea of its end must stay as it was.
template <class Probe, class Make>
std::string probe(const char *symbol, int least, const char *what, Make make) {
  const size_t size = sizeof(Probe) + 4096;
  // Never freed: after a mismatch nobody knows what the host still points to.
  auto memory = new std::vector<unsigned char>(size + 64, poison);
  auto start = reinterpret_cast<unsigned char *>((reinterpret_cast<uintptr_t>(memory->data()) + 63) & ~(uintptr_t) 63);
  Probe *made = make(start);
  std::string why = compare_tables(made, symbol, least, what);
  if (why.empty() && !made->as_made()) why = std::string("its class ") + what + " is laid out otherwise";
  for (size_t k = sizeof(Probe); k < size && why.empty(); ++k)
    if (start[k] != poison) why = std::string("its class ") + what + " is larger";
  if (!why.empty()) return why;
  made->~Probe();
  delete memory;
  return "";
}

std::string compare_settings(LAMMPS *lammps) {
  if (!lammps_extract_setting) return "";
  struct {
    const char *name;
    int64_t seen;
  } const settings[] = {
      {"nlocal", lammps->atom->nlocal},       {"nghost", lammps->atom->nghost},
      {"nmax", lammps->atom->nmax},           {"ntypes", lammps->atom->ntypes},
      {"world_rank", lammps->comm->me},       {"world_size", lammps->comm->nprocs},
      {"nthreads", lammps->comm->nthreads},   {"tagint", sizeof(tagint)},
      {"bigint", sizeof(bigint)},             {"imageint", sizeof(imageint)},
  };
  for (const auto &[name, seen] : settings)
    if (lammps_extract_setting(lammps, name) != seen) return std::string("it sees another ") + name;
  return "";
}

}  // namespace

std::string host_differs(void *host) {
  auto lammps = static_cast<LAMMPS *>(host);
  std::string why = probe<ProbePair>("_ZTVN9LAMMPS_NS4PairE", pair_functions, "Pair",
                                     [&](void *at) { return new (at) ProbePair(lammps); });
  if (!why.empty()) return why;
  static char id[] = "nequip_probe", group[] = "all", style[] = "none";
  static char *arg[] = {id, group, style};
  why = probe<ProbeCompute>("_ZTVN9LAMMPS_NS7ComputeE", compute_functions, "Compute",
                            [&](void *at) { return new (at) ProbeCompute(lammps, arg); });
  if (!why.empty()) return why;
  return compare_settings(lammps);
}

}  // namespace nequip_lammps
