// What a compiled model says about itself, read before it is loaded. SPDX-License-Identifier: MIT
#pragma once
#include <string>
#include <vector>

#include "graph.h"

namespace nequip {

// What every model of target lammps gives, in this order below.
inline constexpr const char *required_outputs[] = {"atomic_energy", "forces", "virial", "atomic_virial"};

struct Output {
  std::string name;
  std::vector<std::string> shape;  // names of axes or numbers
};

struct Facts {
  std::vector<std::string> types, elements;
  Cutoffs cutoffs;
  int64_t layers = 0;
  double ghost_distance = 0;
  std::string device, dtype, hash;
  std::string capability, cuda;  // of the GPUs and of the CUDA that it is for; empty on the CPU
  bool narrows = false;          // whether the file also holds the function that keeps the edges within the cut-offs
  std::vector<Output> outputs;

  int64_t output(const std::string &name) const;  // its place, or -1
};

// Throws std::runtime_error with a sentence: no such file, no model of ours, one for another target, torch or processor,
// or one that needs libraries of kernels.
Facts read_facts(const std::string &file);

// The command that makes such a file.
std::string compile_line(const std::string &file, const std::string &device);

}  // namespace nequip
