// SPDX-License-Identifier: MIT
#include <cstring>
#include <exception>

#include "model.h"
#include "nequip_core.h"

struct nequip_model {
  nequip::Model model;
};

namespace {

template <class Act> int32_t guarded(char *error, int32_t length, Act act) {
  try {
    act();
    return 0;
  } catch (const std::exception &caught) {
    if (error && length > 0) {
      std::strncpy(error, caught.what(), length - 1);
      error[length - 1] = '\0';
    }
  } catch (...) {
    if (error && length > 0) std::strncpy(error, "an unknown error", length);
  }
  return 1;
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" {

EXPORT int32_t nequip_abi(void) { return NEQUIP_CORE_ABI; }

EXPORT int32_t nequip_open(const nequip_options *options, nequip_model **out, char *error, int32_t length) {
  return guarded(error, length, [&] { *out = new nequip_model{nequip::Model(*options)}; });
}

EXPORT void nequip_close(nequip_model *model) { delete model; }

EXPORT const nequip_facts *nequip_get_facts(const nequip_model *model) { return &model->model.facts(); }

EXPORT int32_t nequip_compute(nequip_model *model, nequip_step *step, char *error, int32_t length) {
  return guarded(error, length, [&] { model->model.compute(*step); });
}

EXPORT void nequip_get_times(const nequip_model *model, nequip_times *out) { *out = model->model.times(); }

EXPORT int32_t nequip_keep(nequip_model *model, const char *name, int32_t width, int32_t *rows, char *error,
                           int32_t length) {
  return guarded(error, length, [&] { *rows = model->model.keep(name, width); });
}

EXPORT const double *nequip_kept(const nequip_model *model, const char *name) { return model->model.kept(name); }
}
