/* The C ABI between the pair style, which knows LAMMPS and no torch, and the models' side, which knows torch and no
   LAMMPS. Plain data only; no exception crosses it: functions return 0, or 1 with a sentence in `error`.

   SPDX-License-Identifier: MIT */
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Changes with every change below; both sides must have the same. Listed in docs/reference/versions.md. */
#define NEQUIP_CORE_ABI 1

typedef struct nequip_model nequip_model;

typedef struct {
  const char *file;   /* a .nequip.pt2 of target lammps */
  const char *device; /* "auto": where the file was compiled for; "cpu"; "cuda"; "cuda:1" */
  int32_t local_rank; /* of this process on its node: chooses the GPU */
  int32_t threads;    /* of torch on the CPU */
  int32_t block;      /* centre atoms evaluated at once by strictly local models; 0: as memory allows */
} nequip_options;

typedef struct {
  int32_t types;
  const char *const *type_names;   /* [types] */
  const double *pair_cutoffs;      /* [types][types], Angstrom, [centre][neighbour] */
  double cutoff;                   /* the largest, Angstrom */
  int32_t message_passing_layers;  /* 0: strictly local */
  double ghost_distance;           /* how far from an atom others can change its energy, Angstrom */
  const char *device;              /* where it runs: "cpu", "cuda:0" */
  const char *dtype;               /* of its inner arithmetic */
  const char *model_hash;
} nequip_facts;

typedef struct {
  int32_t local, all;       /* atoms of this process; with its ghosts, which come after */
  const double *positions;  /* [all][3], Angstrom; images of atoms are ghosts */
  const int32_t *types;     /* [all], the model's types; -1: the model does not see the atom */
  /* [all] the first atom with the same identity, or NULL. Images of one atom are then computed once, which models with
     message passing need: it is their own number of atoms that counts, not the number of images. */
  const int32_t *same;
  int32_t relist;           /* 1: atoms came, left or changed places since the last step */
  int32_t retype;           /* 1: types changed since the last step */
  double skin;              /* Angstrom: no atom moves by more than half of it until the next relist */
  /* Pairs that are not neighbours, or NULL. */
  int32_t (*excluded)(const void *context, int32_t i, int32_t j);
  const void *context;
  /* A list made by others, used instead of ours when lists > 0: centre atoms, their numbers of neighbours, and where
     these are; only the bits of `mask` of a neighbour are its index. */
  int32_t lists;
  const int32_t *list_atom;          /* [lists] */
  const int32_t *list_count;         /* [atom] */
  int32_t *const *list_neighbors;    /* [atom][count] */
  int32_t mask;
  /* Results */
  double scale;          /* of all energies, 1 for eV */
  double *forces;        /* [all][3], added to: minus the gradient of the energy of the local atoms */
  double *atomic_energy; /* [local], set */
  double virial[9];      /* set: minus the derivative of the energy of the local atoms by the strain */
  double *atomic_virial; /* [all][9], set, or NULL: not wanted */
  int64_t centers;       /* set: atoms whose environments were computed, ghosts among them */
  int64_t edges;         /* set: within the cut-offs */
  int64_t blocks;        /* set: calls of the model */
} nequip_step;

/* Seconds of all steps since the model was opened. */
typedef struct {
  double list, edges, model, all;
  int64_t steps, builds;
} nequip_times;

int32_t nequip_abi(void);
int32_t nequip_open(const nequip_options *, nequip_model **, char *error, int32_t length);
void nequip_close(nequip_model *);
const nequip_facts *nequip_get_facts(const nequip_model *);
int32_t nequip_compute(nequip_model *, nequip_step *, char *error, int32_t length);
void nequip_get_times(const nequip_model *, nequip_times *);

/* Keep an output of the model at each step from now on. `rows` is set to 1 when it has one row per atom, else to 0. */
int32_t nequip_keep(nequip_model *, const char *name, int32_t length, int32_t *rows, char *error, int32_t error_length);
/* What was kept at the last step: [length], summed over the structure; or [all][length]. NULL before the first. */
const double *nequip_kept(const nequip_model *, const char *name);

#ifdef __cplusplus
}
#endif
