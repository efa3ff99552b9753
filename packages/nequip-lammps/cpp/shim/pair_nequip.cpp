// SPDX-License-Identifier: GPL-2.0-only
#include "pair_nequip.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "compute.h"
#include "error.h"
#include "force.h"
#include "ghosts.h"
#include "lammps.h"
#include "memory.h"
#include "modify.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "ranks.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;

namespace nequip_lammps {
namespace {

constexpr int message_length = 4096;
constexpr double too_much_work = 3;   // atoms computed over atoms owned

// Bits of LAMMPS' atom_masks.h, which it does not install. In a host with Kokkos only these travel between devices.
constexpr unsigned x_mask = 0x1, f_mask = 0x4, type_mask = 0x10, mask_mask = 0x20, energy_mask = 0x8000,
                   virial_mask = 0x10000;
constexpr int centroid_available = 1;  // of Pair::centroidstressflag

// Of LAMMPS' neighbour j, the bits above say which special bond it is of.
constexpr int32_t index_mask = NEIGHMASK;

int local_rank() {
  for (const char *name : {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK",
                           "PALS_LOCAL_RANKID", "SLURM_LOCALID"})
    if (const char *value = std::getenv(name)) return std::atoi(value);
  return 0;
}

std::string number(double value, const char *format = "%g") {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

}  // namespace

PairNequip::PairNequip(LAMMPS *lammps, std::string name) : Pair(lammps), name_(std::move(name)) {
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  single_enable = 0;
  respa_enable = 0;
  no_virial_fdotr_compute = 1;  // the model's virial is exact
  centroidstressflag = centroid_available;
  comm_reverse_off = 3 + 9;
  datamask_read = x_mask | f_mask | type_mask | mask_mask | energy_mask | virial_mask;
  datamask_modify = f_mask | energy_mask | virial_mask;
}

PairNequip::~PairNequip() {
  if (copymode) return;
  release_ghosts(lmp, this);
  if (model_) core_->close(model_);
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

void PairNequip::fail(const std::string &sentence) const { error->all(FLERR, "pair_style " + name_ + ": " + sentence); }

void PairNequip::fail_here(const std::string &sentence) const {
  error->one(FLERR, "pair_style " + name_ + ": " + sentence);
}

// Errors of all processes are one error; those of some must end all.
void PairNequip::agree(bool failed, const std::string &sentence) const {
  double failures = failed;
  sum_over_ranks(comm, &failures, 1);
  if (failures == comm->nprocs) fail(sentence);
  if (failed) fail_here(sentence);
  if (failures > 0) fail(number(failures) + " other processes could not load the model");
}

void PairNequip::settings(int narg, char **arg) {
  for (int k = 0; k < narg; k += 2) {
    const std::string key = arg[k], value = k + 1 < narg ? arg[k + 1] : "";
    if (key == "neighbor" && (value == "core" || value == "lmplist")) lmplist_ = value == "lmplist";
    else if (key == "device" && !value.empty()) device_ = value;
    else if (key == "block" && value == "auto") block_ = 0;
    else if (key == "block" && std::atoi(value.c_str()) > 0) block_ = std::atoi(value.c_str());
    else
      fail("unknown argument '" + key + (value.empty() ? "" : " " + value) +
           "'; expected [neighbor core|lmplist] [device auto|cpu|cuda:N] [block auto|N]");
  }
}

void PairNequip::coeff(int narg, char **arg) {
  if (narg != 3 + atom->ntypes || std::strcmp(arg[0], "*") != 0 || std::strcmp(arg[1], "*") != 0)
    fail("expected pair_coeff * * FILE.nequip.pt2 and a type name of the model, or NULL, for each of the " +
         std::to_string(atom->ntypes) + " atom types");
  open_model(arg[2]);
  map_types(narg - 3, arg + 3);
}

void PairNequip::open_model(const std::string &file) {
  if (model_) {
    core_->close(model_);
    model_ = nullptr;
    told_ = {};
  }
  file_ = file;
  std::string why;
  core_ = load_core(why);
  agree(!core_, why);
  char text[message_length] = "";
  const nequip_options options{file.c_str(), device_.c_str(), local_rank(), std::max(comm->nthreads, 1), block_};
  const bool failed = core_->open(&options, &model_, text, message_length) != 0;
  agree(failed, text);
  builds_ = -1;
}

void PairNequip::map_types(int names, char **name) {
  const nequip_facts *facts = core_->get_facts(model_);
  if (!allocated) {
    const int n = atom->ntypes + 1;
    memory->create(setflag, n, n, "pair:setflag");
    memory->create(cutsq, n, n, "pair:cutsq");
    allocated = 1;
  }
  type_map_.assign(names + 1, -1);
  some_null_ = false;
  std::string table;
  for (int k = 0; k < names; ++k) {
    table += (k ? ", " : "") + std::to_string(k + 1) + " = " + name[k];
    if (std::strcmp(name[k], "NULL") == 0) {
      some_null_ = true;
      continue;
    }
    for (int t = 0; t < facts->types; ++t)
      if (std::strcmp(name[k], facts->type_names[t]) == 0) type_map_[k + 1] = t;
    if (type_map_[k + 1] < 0) {
      std::string known;
      for (int t = 0; t < facts->types; ++t) known += std::string(t ? " " : "") + facts->type_names[t];
      fail("atom type " + std::to_string(k + 1) + " is to be " + name[k] + ", which is no type of the model " + file_ +
           "; its types are " + known);
    }
  }
  if (some_null_ && force->pair == this)
    fail("NULL in pair_coeff leaves atoms to another pair style; use pair_style hybrid or hybrid/overlay");
  for (int i = 1; i <= names; ++i)
    for (int j = 1; j <= names; ++j) setflag[i][j] = type_map_[i] >= 0 && type_map_[j] >= 0;
  if (comm->me == 0)
    utils::logmesg(lmp, "pair_style " + name_ + ": " + file_ + ", " +
                            (facts->message_passing_layers == 0
                                 ? std::string("strictly local")
                                 : std::to_string(facts->message_passing_layers) + " layers of message passing") +
                            ", cut-off " + number(facts->cutoff) + " A, " + facts->dtype + ", on " + facts->device +
                            "; types " + table + "\n");
}

void PairNequip::init_style() {
  if (!model_) fail("pair_coeff * * FILE.nequip.pt2 ... is missing");
  check_input();
  const nequip_facts *facts = core_->get_facts(model_);
  const std::string units = update->unit_style;
  scale_ = units == "real" ? utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL) : 1;
  // On one process all ghosts are images of own atoms, so that only nearest ones are needed.
  const double distance = facts->ghost_distance + neighbor->skin;
  const double needed = comm->nprocs == 1 && atom->tag_enable ? facts->cutoff + neighbor->skin : distance;
  const double user = request_ghosts(lmp, this, needed);
  if (user > 0 && user < distance)
    fail("comm_modify cutoff " + number(user) + " is too small for " + file_ + ", whose atoms see " +
         number(facts->ghost_distance) + " A far, and a skin of " + number(neighbor->skin) +
         "; write comm_modify cutoff " + number(std::ceil(distance * 10) / 10) + ", or leave the line out");
  if (lmplist_)
    neighbor->add_request(this, NeighConst::REQ_FULL |
                                    (facts->message_passing_layers > 0 ? NeighConst::REQ_GHOST : 0));
  builds_ = -1;
  say_work_ = facts->message_passing_layers > 0;
}

void PairNequip::check_input() {
  const nequip_facts *facts = core_->get_facts(model_);
  const std::string units = update->unit_style;
  if (units != "metal" && units != "real")
    fail("units " + units + " are not supported; use units metal or units real");
  if (update->integrate_style && std::strncmp(update->integrate_style, "respa", 5) == 0)
    fail("run_style respa is not supported; use run_style verlet");
  if (neighbor->includegroup)
    fail("neigh_modify include is not supported, because all atoms are neighbours of a model's atoms");
  if (facts->message_passing_layers > 0 && comm->mode != Comm::SINGLE)
    fail("comm_modify mode multi is not supported by models with message passing; use mode single");
  if (!modify->get_compute_by_style("heat/flux").empty()) {
    if (facts->message_passing_layers > 0)
      fail("compute heat/flux is not defined by the per-atom virials of a model with message passing; use a strictly "
           "local model (Allegro)");
    if (modify->get_compute_by_style("centroid/stress/atom").empty())
      fail("compute heat/flux of a many-body model needs compute centroid/stress/atom in place of stress/atom");
  }
  if (lmplist_ && atom->molecular != Atom::ATOMIC)
    for (int k = 1; k < 4; ++k)
      if (force->special_lj[k] != 1 || force->special_coul[k] != 1)
        fail("neighbor lmplist lacks the pairs that special_bonds takes out, and the model needs them; write "
             "special_bonds lj/coul 1 1 1, or use neighbor core");
}

double PairNequip::init_one(int i, int j) {
  const nequip_facts *facts = core_->get_facts(model_);
  const int a = type_map_[i], b = type_map_[j];
  if (a < 0 || b < 0) return 0;
  return std::max(facts->pair_cutoffs[a * facts->types + b], facts->pair_cutoffs[b * facts->types + a]);
}

bool PairNequip::excludes() const { return !lmplist_ && neighbor->exclude != 0; }

// An atom in a group that is excluded from all atoms is not there, as fix gcmc means it when it tries a deletion.
bool PairNequip::gone(int i) const {
  const int all = 1;  // the bit of group all
  for (int k = 0; k < neighbor->nex_group; ++k)
    if ((neighbor->ex2_bit[k] == all && (atom->mask[i] & neighbor->ex1_bit[k])) ||
        (neighbor->ex1_bit[k] == all && (atom->mask[i] & neighbor->ex2_bit[k])))
      return true;
  return false;
}

// Whether neigh_modify exclude takes the pair out.
int32_t PairNequip::excluded(const void *context, int32_t i, int32_t j) {
  const auto pair = static_cast<const PairNequip *>(context);
  const Neighbor *neighbor = pair->neighbor;
  const Atom *atom = pair->atom;
  if (neighbor->nex_type && neighbor->ex_type[atom->type[i]][atom->type[j]]) return 1;
  const int *mask = atom->mask;
  for (int k = 0; k < neighbor->nex_group; ++k)
    if ((mask[i] & neighbor->ex1_bit[k] && mask[j] & neighbor->ex2_bit[k]) ||
        (mask[i] & neighbor->ex2_bit[k] && mask[j] & neighbor->ex1_bit[k]))
      return 1;
  for (int k = 0; k < neighbor->nex_mol; ++k)
    if (mask[i] & neighbor->ex_mol_bit[k] && mask[j] & neighbor->ex_mol_bit[k]) {
      const bool same = atom->molecule[i] == atom->molecule[j];
      if (neighbor->ex_mol_intra[k] ? same : !same) return 1;
    }
  return 0;
}

// For each atom the first one with its tag: an own atom for images of own atoms.
void PairNequip::see_images() {
  const int all = atom->nlocal + atom->nghost;
  std::vector<std::pair<tagint, int>> sorted(all);
  for (int i = 0; i < all; ++i) sorted[i] = {atom->tag[i], i};
  std::sort(sorted.begin(), sorted.end());
  same_.resize(all);
  for (int k = 0, first = 0; k < all; ++k) {
    if (sorted[k].first != sorted[first].first) first = k;
    same_[sorted[k].second] = sorted[first].second;
  }
}

// The model's type of each atom; whether one changed.
bool PairNequip::see_types() {
  const int all = atom->nlocal + atom->nghost;
  const bool exclude = neighbor->nex_group > 0;
  bool changed = (int) types_.size() != all;
  types_.resize(all);
  const int *type = atom->type;
  for (int i = 0; i < all; ++i) {
    int32_t seen = type_map_[type[i]];
    if (exclude && gone(i)) seen = -1;
    changed |= types_[i] != seen;
    types_[i] = seen;
  }
  return changed;
}

void PairNequip::compute(int eflag, int vflag) {
  ev_init(eflag, vflag);
  const int local = atom->nlocal, all = local + atom->nghost;
  const bool newton = force->newton_pair;
  const bool of_atoms = vflag_atom || cvflag_atom;
  nequip_step step{};
  step.local = local;
  step.all = all;
  step.positions = all ? &atom->x[0][0] : nullptr;
  // Atoms may change their types without a new list (fix atom/swap); from and to NULL they need one.
  const std::vector<int32_t> before = some_null_ || neighbor->nex_group ? types_ : std::vector<int32_t>();
  step.retype = see_types();
  step.types = types_.data();
  step.relist = neighbor->ago == 0 || neighbor->ncalls != builds_ || local != local_ || all != all_;
  if (step.retype && !step.relist && before.size() == types_.size())
    for (int i = 0; i < all; ++i) step.relist |= (before[i] < 0) != (types_[i] < 0);
  builds_ = neighbor->ncalls;
  local_ = local;
  all_ = all;
  if (core_->get_facts(model_)->message_passing_layers > 0 && atom->tag_enable) {
    if (step.relist) see_images();
    step.same = same_.data();
  }
  step.skin = neighbor->skin;
  step.scale = scale_;
  if (excludes()) {
    step.excluded = excluded;
    step.context = this;
  }
  if (lmplist_) {
    step.lists = list->inum + list->gnum;
    step.list_atom = list->ilist;
    step.list_count = list->numneigh;
    step.list_neighbors = list->firstneigh;
    step.mask = index_mask;
  }
  if (eflag_either) {
    energies_.resize(local + 1);
    step.atomic_energy = energies_.data();
  }
  if (of_atoms) {
    virials_.resize(9 * (size_t) all + 1);
    step.atomic_virial = virials_.data();
  }
  // With newton off LAMMPS leaves ghosts' forces alone: they are ours to send home.
  const int width = of_atoms ? 12 : 3;
  std::vector<double> forces;
  if (newton) {
    step.forces = all ? &atom->f[0][0] : nullptr;
  } else {
    forces.assign(3 * (size_t) all + 1, 0);
    step.forces = forces.data();
  }
  char text[message_length] = "";
  if (core_->compute(model_, &step, text, message_length)) fail_here(text);
  if (!newton) reverse_results(forces.data(), width);
  tally(step);
  blocks_ = step.blocks;
  if (say_work_) say_work(step);
}

void PairNequip::tally(const nequip_step &step) {
  if (eflag_global)
    for (int i = 0; i < step.local; ++i) eng_vdwl += energies_[i];
  if (eflag_atom)
    for (int i = 0; i < step.local; ++i) eatom[i] += energies_[i];
  // LAMMPS' order: xx yy zz xy xz yz, and for centroids yx zx zy after them.
  static const int place[9] = {0, 4, 8, 1, 2, 5, 3, 6, 7};
  if (vflag_global)
    for (int k = 0; k < 6; ++k) virial[k] += step.virial[place[k]];
  const int rows = force->newton_pair ? step.all : step.local;
  for (int i = 0; i < rows && (vflag_atom || cvflag_atom); ++i) {
    const double *from = &virials_[9 * (size_t) i];
    if (vflag_atom) {
      for (int k = 0; k < 3; ++k) vatom[i][k] += from[place[k]];
      for (int k = 3; k < 6; ++k) vatom[i][k] += 0.5 * (from[place[k]] + from[place[k + 3]]);
    }
    if (cvflag_atom)
      for (int k = 0; k < 9; ++k) cvatom[i][k] += from[place[k]];
  }
}

// Ghosts' forces, and their virials when asked for, to the processes that own the atoms.
void PairNequip::reverse_results(double *forces, int width) {
  const int local = atom->nlocal, all = local + atom->nghost;
  reverse_width_ = width;
  reverse_.resize((size_t) width * all + 1);
  for (int i = 0; i < all; ++i) {
    std::copy_n(forces + 3 * (size_t) i, 3, &reverse_[(size_t) width * i]);
    if (width > 3) std::copy_n(&virials_[9 * (size_t) i], 9, &reverse_[(size_t) width * i + 3]);
  }
  comm->reverse_comm(this, width);
  for (int i = 0; i < local; ++i) {
    for (int k = 0; k < 3; ++k) atom->f[i][k] += reverse_[(size_t) width * i + k];
    if (width > 3) std::copy_n(&reverse_[(size_t) width * i + 3], 9, &virials_[9 * (size_t) i]);
  }
}

int PairNequip::pack_reverse_comm(int n, int first, double *buffer) {
  std::copy_n(&reverse_[(size_t) reverse_width_ * first], (size_t) reverse_width_ * n, buffer);
  return reverse_width_ * n;
}

void PairNequip::unpack_reverse_comm(int n, int *list, double *buffer) {
  for (int i = 0; i < n; ++i)
    for (int k = 0; k < reverse_width_; ++k)
      reverse_[(size_t) reverse_width_ * list[i] + k] += buffer[(size_t) reverse_width_ * i + k];
}

// Once per run: how many atoms' features were computed for those that are owned.
void PairNequip::say_work(const nequip_step &step) {
  say_work_ = false;
  double counts[2] = {(double) step.centers, 0};
  for (int i = 0; i < step.local; ++i) counts[1] += types_[i] >= 0;
  sum_over_ranks(comm, counts, 2);
  if (comm->me != 0 || counts[1] == 0) return;
  const double ratio = counts[0] / counts[1];
  utils::logmesg(lmp, "pair_style " + name_ + ": " + number(counts[0], "%.0f") + " atoms are computed for " +
                          number(counts[1], "%.0f") + " owned, ratio " + number(ratio, "%.2f") + "\n");
  if (ratio > too_much_work)
    error->warning(FLERR, "pair_style " + name_ + ": " + number(ratio, "%.1f") +
                              " times as many atoms are computed as there are, because each process computes its "
                              "ghosts too; use fewer processes, a larger system, or a strictly local model (Allegro)");
}

// At the end of a run: where the time of this process went.
void PairNequip::finish() {
  if (comm->me != 0 || !model_) return;
  nequip_times now;
  core_->get_times(model_, &now);
  const double steps = (double) (now.steps - told_.steps);
  if (steps == 0) return;
  const auto each = [steps](double before, double after) { return number(1e3 * (after - before) / steps, "%.4g"); };
  utils::logmesg(lmp, "pair_style " + name_ + ": ms per evaluation: model " + each(told_.model, now.model) +
                          ", edges and results " + each(told_.edges, now.edges) + ", lists " +
                          each(told_.list, now.list) + " (" + std::to_string(now.builds - told_.builds) +
                          " in " + number(steps, "%.0f") + " evaluations)" +
                          (blocks_ > 1 ? ", the last in " + std::to_string(blocks_) + " blocks" : "") + "\n");
  told_ = now;
}

double PairNequip::memory_usage() {
  return Pair::memory_usage() + sizeof(double) * (double) (energies_.size() + virials_.size() + reverse_.size()) +
         sizeof(int32_t) * (double) types_.size();
}

bool PairNequip::keep(const std::string &quantity, int length) {
  if (!model_) fail("pair_coeff * * FILE.nequip.pt2 ... is missing");
  int32_t rows = 0;
  char text[message_length] = "";
  if (core_->keep(model_, quantity.c_str(), length, &rows, text, message_length)) fail(text);
  return rows != 0;
}

const double *PairNequip::kept(const std::string &quantity) const { return core_->kept(model_, quantity.c_str()); }

}  // namespace nequip_lammps
