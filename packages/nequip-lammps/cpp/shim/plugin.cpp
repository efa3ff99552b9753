// What LAMMPS calls: the styles are registered when it starts, the guard asks when one is first made.
// SPDX-License-Identifier: GPL-2.0-only
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "compute_nequip.h"
#include "force.h"
#include "guard.h"
#include "lammps.h"
#include "lammps_plugin.h"
#include "pair_nequip.h"

#ifndef NEQUIP_LAMMPS_VERSION
#error "NEQUIP_LAMMPS_VERSION: the version of the LAMMPS that the headers are of"
#endif

namespace {

using LAMMPS_NS::LAMMPS;

// End the run without LAMMPS' classes, since they are not the ones that we know.
[[noreturn]] void refuse(void *lammps, const std::string &why) {
  const std::string sentence =
      "nequip-lammps was compiled for LAMMPS " NEQUIP_LAMMPS_VERSION " and this is another one (" + why +
      "); see `nequip lammps check lmp`, or make the plugin for it with `nequip lammps build --lammps FOLDER`";
  auto raise = reinterpret_cast<void (*)(void *, int, const char *)>(dlsym(RTLD_DEFAULT, "lammps_error"));
  const int on_all_processes = 2;  // LMP_ERROR_ALL
  if (raise) raise(lammps, on_all_processes, sentence.c_str());
  std::fprintf(stderr, "ERROR: %s\n", sentence.c_str());
  std::abort();
}

void guard(void *lammps) {
  static bool checked = false;
  if (checked) return;
  const std::string why = nequip_lammps::host_differs(lammps);
  if (!why.empty()) refuse(lammps, why);
  checked = true;
}

void *make_pair(void *lammps, const char *name) {
  guard(lammps);
  // LAMMPS takes the pointer for one to its own base class.
  return static_cast<LAMMPS_NS::Pair *>(new nequip_lammps::PairNequip(static_cast<LAMMPS *>(lammps), name));
}

void *make_nequip(void *lammps) { return make_pair(lammps, "nequip"); }
void *make_allegro(void *lammps) { return make_pair(lammps, "allegro"); }

template <class Style> void *make_compute(void *lammps, int narg, char **arg) {
  guard(lammps);
  return static_cast<LAMMPS_NS::Compute *>(new Style(static_cast<LAMMPS *>(lammps), narg, arg));
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void *lammps, void *handle, void *function) {
  const auto add = reinterpret_cast<nequip_register_style>(function);
  nequip_lammps_plugin plugin{};
  plugin.version = NEQUIP_LAMMPS_VERSION;
  plugin.info = "nequip-lammps: models of nequip-core";
  plugin.author = "the nequip-core authors";
  plugin.handle = handle;
  plugin.style = "pair";
  plugin.name = "nequip";
  plugin.creator.pair = make_nequip;
  add(&plugin, lammps);
  plugin.name = "allegro";
  plugin.creator.pair = make_allegro;
  add(&plugin, lammps);
  plugin.style = "compute";
  for (const char *name : {"nequip", "allegro"}) {
    plugin.name = name;
    plugin.creator.style = make_compute<nequip_lammps::ComputeNequip>;
    add(&plugin, lammps);
  }
  for (const char *name : {"nequip/atom", "allegro/atom"}) {
    plugin.name = name;
    plugin.creator.style = make_compute<nequip_lammps::ComputeNequipAtom>;
    add(&plugin, lammps);
  }
}

// For a LAMMPS without the PLUGIN package: put the pair styles where plugins would be put.
extern "C" __attribute__((visibility("default"))) void nequip_lammps_inject(void *lammps) {
  guard(lammps);
  auto &styles = *static_cast<LAMMPS *>(lammps)->force->pair_map;
  styles["nequip"] = reinterpret_cast<LAMMPS_NS::Force::PairCreator>(make_nequip);
  styles["allegro"] = reinterpret_cast<LAMMPS_NS::Force::PairCreator>(make_allegro);
}
