// LAMMPS' documented interface for plugins (docs.lammps.org/Developer_plugins.html), declared here so that any LAMMPS
// with the PLUGIN package can load the plugin, whether or not it installs that header.
// SPDX-License-Identifier: GPL-2.0-only
#pragma once

extern "C" {
typedef void *(*nequip_pair_creator)(void *lammps);
typedef void *(*nequip_style_creator)(void *lammps, int, char **);

typedef struct {
  const char *version;
  const char *style;
  const char *name;
  const char *info;
  const char *author;
  union {
    nequip_pair_creator pair;
    nequip_style_creator style;
  } creator;
  void *handle;
} nequip_lammps_plugin;

typedef void (*nequip_register_style)(nequip_lammps_plugin *, void *lammps);
}
