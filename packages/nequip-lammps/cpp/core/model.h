// A compiled model and its neighbour list. SPDX-License-Identifier: MIT
#pragma once
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "device_list.h"
#include "facts.h"
#include "graph.h"
#include "nequip_core.h"

namespace nequip {

class Model {
 public:
  explicit Model(const nequip_options &);

  const nequip_facts &facts() const { return plain_; }
  const nequip_times &times() const { return times_; }
  void compute(nequip_step &);
  bool keep(const std::string &name, int64_t length);  // whether it has one row per atom
  const double *kept(const std::string &name) const;

 private:
  class Sums;
  struct Kept {
    int64_t place, length;
    bool rows;
    at::Tensor sum;  // [length] or [all, length], on the CPU
  };

  void list(const nequip_step &);
  void start(nequip_step &);
  void evaluate(nequip_step &);
  void evaluate_in_memory(nequip_step &);
  std::vector<at::Tensor> run(const Inputs &);
  Narrow narrow();
  void keep_outputs(int64_t block, const Inputs &, const std::vector<at::Tensor> &outputs);
  void choose_block(const nequip_step &);

  Facts facts_;
  nequip_facts plain_{};
  std::vector<const char *> type_names_;
  std::string device_name_;
  at::Device device_{at::kCPU};
  int threads_ = 1;
  int64_t block_ = 0;       // centres per block
  bool choose_ = false;     // block_ is to be chosen after the next evaluation
  bool halve_ = false;      // block_ is ours to choose
  bool stale_ = true;       // the list must be made before it is used
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_, narrow_;  // the second in files for GPUs
  std::unique_ptr<NeighborList> list_;
  bool host_list_ = true;
  std::map<std::string, Kept> kept_;
  nequip_times times_{};
};

}  // namespace nequip
