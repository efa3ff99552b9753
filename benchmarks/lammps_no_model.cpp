// A core without a model, for benchmarks/lammps.py --host: a step copies positions as if to a device, and adds forces of
// zero as if from there. What is left is LAMMPS and the pair style. Compiled with GRAPH it also lists neighbours and makes
// the model's graph, which is the processor's part where the model is on the CPU. SPDX-License-Identifier: MIT
#include <cstring>
#include <vector>

#include "nequip_core.h"
#ifdef GRAPH
#include "host_list.cpp"
#endif

namespace {
const char *names[] = {"H", "O"};
const double cutoff = 6, cutoffs[] = {cutoff, cutoff, cutoff, cutoff};
}  // namespace

struct nequip_model {
  std::vector<double> positions, forces;
  nequip_facts facts;
#ifdef GRAPH
  nequip::HostList list{nequip::Cutoffs{2, {cutoff, cutoff, cutoff, cutoff}, cutoff}};
#endif
};

extern "C" {
int32_t nequip_abi(void) { return NEQUIP_CORE_ABI; }
int32_t nequip_open(const nequip_options *, nequip_model **out, char *, int32_t) {
  *out = new nequip_model{{}, {}, {2, names, cutoffs, cutoff, 0, cutoff, "cpu", "float32", ""}};
  return 0;
}
void nequip_close(nequip_model *model) { delete model; }
const nequip_facts *nequip_get_facts(const nequip_model *model) { return &model->facts; }
int32_t nequip_compute(nequip_model *model, nequip_step *step, char *, int32_t) {
  const size_t numbers = 3 * (size_t) step->all;
  model->positions.resize(numbers);
  model->forces.resize(numbers);
#ifdef GRAPH
  const nequip::Atoms atoms{step->local, step->all, step->positions, step->types};
  if (step->relist) model->list.build({atoms, step->skin, 0, 1024, nullptr, {}, nullptr});
  model->list.move(atoms);
  for (int64_t block = 0; block < model->list.blocks(); ++block) model->list.inputs(block);
#else
  std::memcpy(model->positions.data(), step->positions, numbers * sizeof(double));
#endif
  for (size_t k = 0; k < numbers; ++k) step->forces[k] += model->forces[k];
  if (step->atomic_energy) std::memset(step->atomic_energy, 0, step->local * sizeof(double));
  if (step->atomic_virial) std::memset(step->atomic_virial, 0, 9 * (size_t) step->all * sizeof(double));
  std::memset(step->virial, 0, sizeof step->virial);
  step->centers = step->local;
  step->blocks = 1;
  return 0;
}
void nequip_get_times(const nequip_model *, nequip_times *times) { *times = nequip_times{}; }
int32_t nequip_keep(nequip_model *, const char *, int32_t, int32_t *, char *, int32_t) { return 1; }
const double *nequip_kept(const nequip_model *, const char *) { return nullptr; }
}
