// SPDX-License-Identifier: MIT
#include "model.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <stdexcept>

#include "device_list.h"
#include "gpu.h"
#include "host_list.h"

namespace nequip {
namespace {

// Centres per block on the CPU, where more at once is no faster and takes memory.
constexpr int64_t cpu_block = 1024;
// And the first time on a GPU, to see how much memory a centre takes.
constexpr int64_t first_block = 4096;
constexpr int64_t least_block = 64;
constexpr double part_of_memory = 0.6;

double now() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// LAMMPS has its own number of threads, torch in the same Python process too.
struct Threads {
  int before;
  explicit Threads(int number) : before(at::get_num_threads()) {
    if (number != before) at::set_num_threads(number);
  }
  ~Threads() {
    if (at::get_num_threads() != before) at::set_num_threads(before);
  }
};

// Whether the code in the file is for this GPU and torch's CUDA.
void check_gpu(const std::string &file, const Facts &facts, int index) {
  const std::string here = gpu::capability(index), cuda = facts.cuda.substr(0, facts.cuda.find('.'));
  if (facts.capability != here)
    throw std::runtime_error(file + " was compiled for GPUs of compute capability " + facts.capability + ", and cuda:" +
                             std::to_string(index) + " has " + here + ": compile it here with " +
                             compile_line(file, "cuda"));
  if (cuda != std::to_string(gpu::cuda_major()))
    throw std::runtime_error(file + " was compiled with CUDA " + facts.cuda + ", and torch has CUDA " +
                             std::to_string(gpu::cuda_major()) + " here: compile it here with " +
                             compile_line(file, "cuda"));
}

at::Device choose_device(const std::string &file, const Facts &facts, const std::string &asked, int local_rank) {
  const std::string &built = facts.device;
  const std::string kind = asked.substr(0, asked.find(':'));
  if (kind != "auto" && kind != "cpu" && kind != "cuda")
    throw std::runtime_error("there is no device " + asked + "; expected auto, cpu, cuda or cuda:N");
  if (kind != "auto" && kind != built)
    throw std::runtime_error(file + " was compiled for " + built + ", and " + asked + " was asked for: compile it with " +
                             compile_line(file, kind));
  if (built == "cpu") return at::Device(at::kCPU);
  const int there = gpu::count();
  if (there == 0)
    throw std::runtime_error(file + " was compiled for cuda, and torch " TORCH_VERSION " sees no GPU here: use a GPU, or " +
                             compile_line(file, "cpu"));
  int index = local_rank % there;
  if (asked.size() > 5) index = std::atoi(asked.c_str() + 5);
  if (index < 0 || index >= there)
    throw std::runtime_error("there is no device " + asked + ": torch sees " + std::to_string(there) + " here");
  check_gpu(file, facts, index);
  return at::Device(at::kCUDA, (at::DeviceIndex) index);
}

std::vector<at::Tensor> to_device(std::vector<at::Tensor> tensors, at::Device device) {
  for (at::Tensor &tensor : tensors) tensor = tensor.to(device);
  return tensors;
}

}  // namespace

Model::Model(const nequip_options &options) : facts_(read_facts(options.file)) {
  device_ = choose_device(options.file, facts_, options.device, options.local_rank);
  device_name_ = device_.str();
  c10::OptionalDeviceGuard guard(device_);  // the loader makes the device the current one, and the host may have another
  if (!device_.is_cpu()) {
    gpu::let_memory_grow();
    at::zeros({1}, at::TensorOptions(device_));  // torch starts CUDA with the first tensor
  }
  threads_ = std::max<int>(options.threads, 1);
  choose_ = halve_ = options.block == 0 && facts_.layers == 0;
  block_ = options.block > 0 ? options.block : device_.is_cpu() ? cpu_block : first_block;
  const auto load = [&](const char *name) {
    return std::make_unique<torch::inductor::AOTIModelPackageLoader>(
        options.file, name, /*run_single_threaded=*/false, /*num_runners=*/1, device_.is_cpu() ? -1 : device_.index());
  };
  try {
    loader_ = load("model");
    if (facts_.narrows) narrow_ = load("narrow");
  } catch (const std::exception &error) {
    throw std::runtime_error(std::string(options.file) + " can not be loaded: " + error.what());
  }
  for (const std::string &name : facts_.types) type_names_.push_back(name.c_str());
  plain_ = nequip_facts{
      (int32_t) facts_.types.size(), type_names_.data(),      facts_.cutoffs.pair.data(), facts_.cutoffs.largest,
      (int32_t) facts_.layers,       facts_.ghost_distance,   device_name_.c_str(),       facts_.dtype.c_str(),
      facts_.hash.c_str(),
  };
}

bool Model::keep(const std::string &name, int64_t length) {
  const int64_t place = facts_.output(name);
  if (place < 0) {
    std::string there;
    for (const Output &output : facts_.outputs) there += (there.empty() ? "" : ", ") + output.name;
    throw std::runtime_error("the model has no output " + name + "; it has " + there);
  }
  const std::vector<std::string> &shape = facts_.outputs[place].shape;
  int64_t width = 1;
  for (size_t k = 1; k < shape.size(); ++k) width *= std::atoll(shape[k].c_str());
  if (width != length)
    throw std::runtime_error("the model's output " + name + " has length " + std::to_string(width) + ", and " +
                             std::to_string(length) + " was asked for");
  const bool rows = shape.at(0) == "atoms";
  kept_[name] = Kept{place, length, rows, at::Tensor()};
  return rows;
}

const double *Model::kept(const std::string &name) const {
  auto found = kept_.find(name);
  if (found == kept_.end() || !found->second.sum.defined()) return nullptr;
  return found->second.sum.data_ptr<double>();
}

// The list is made on the model's device, unless LAMMPS has a say in which pairs there are.
void Model::list(const nequip_step &step) {
  const double start = now();
  const bool outside = step.lists > 0, some = step.excluded != nullptr;
  const char *forced = std::getenv("NEQUIP_LAMMPS_LIST");  // for tests: the device's list on the CPU
  const bool host = outside || some || (device_.is_cpu() && !(forced && std::string(forced) == "tensors"));
  if (!list_ || host != host_list_) {
    if (host) list_ = std::make_unique<HostList>(facts_.cutoffs);
    else list_ = std::make_unique<DeviceList>(facts_.cutoffs, device_, narrow());
    host_list_ = host;
  }
  const OutsideList others{step.lists, step.list_atom, step.list_count, step.list_neighbors, step.mask};
  ListRequest request{{step.local, step.all, step.positions, step.types},
                      step.skin, facts_.layers, block_, facts_.layers > 0 ? step.same : nullptr, {},
                      outside ? &others : nullptr};
  if (some) request.excluded = [&step](int32_t i, int32_t j) { return step.excluded(step.context, i, j) != 0; };
  list_->build(request);
  stale_ = false;
  ++times_.builds;
  times_.list += now() - start;
}

Narrow Model::narrow() {
  if (!narrow_) return {};
  return [this](const std::vector<at::Tensor> &tensors) { return narrow_->run(tensors); };
}

std::vector<at::Tensor> Model::run(const Inputs &inputs) {
  auto tensors = inputs.list();
  if (host_list_ && !device_.is_cpu()) tensors = to_device(std::move(tensors), device_);
  for (at::Tensor &tensor : tensors) tensor = tensor.contiguous();  // the model reads by the strides of its example
  return loader_->run(tensors);
}

void Model::compute(nequip_step &step) {
  at::NoGradGuard no_gradients;
  c10::OptionalDeviceGuard guard(device_);
  Threads threads(threads_);
  const double begin = now();
  start(step);
  if (step.local > 0) evaluate_in_memory(step);
  else stale_ = true;
  ++times_.steps;
  times_.all += now() - begin;
}

// Results are sums, from zero.
void Model::start(nequip_step &step) {
  std::fill_n(step.virial, 9, 0.0);
  step.centers = step.edges = step.blocks = 0;
  if (step.atomic_energy) std::fill_n(step.atomic_energy, step.local, 0.0);
  if (step.atomic_virial) std::fill_n(step.atomic_virial, 9 * (int64_t) step.all, 0.0);
  for (auto &[name, kept] : kept_)
    kept.sum = kept.rows ? at::zeros({step.all, kept.length}, at::kDouble) : at::zeros({kept.length}, at::kDouble);
}

// Blocks that do not fit are halved: others may have taken memory since it was looked at.
void Model::evaluate_in_memory(nequip_step &step) {
  const Atoms atoms{step.local, step.all, step.positions, step.types};
  if (step.retype && list_ && !step.relist && !stale_) list_->retype(atoms);
  bool anew = step.relist || stale_ || !list_;
  while (true) {
    const int64_t before = device_.is_cpu() ? 0 : gpu::out_of_memory(device_.index());
    try {
      if (anew) list(step);
      list_->move(atoms);
      evaluate(step);
      return;
    } catch (const std::exception &) {
      if (device_.is_cpu() || gpu::out_of_memory(device_.index()) == before) throw;
    }
    if (!halve_ || block_ <= least_block)
      throw std::runtime_error("the model needs more memory than " + device_name_ + " has: use more GPUs" +
                               (halve_ || facts_.layers > 0 ? "" : ", or leave out block"));
    block_ = std::max(least_block, std::min<int64_t>(block_, step.local) / 2);
    choose_ = false;
    anew = true;
    list_.reset();
    gpu::empty_cache();
    start(step);
  }
}

// The sums of a block's results with those of other blocks, on the device until the last. A node occurs once in a block,
// so that each sum is in the blocks' order: the same at every repeat.
class Model::Sums {
 public:
  Sums(nequip_step &step, at::Device device) : step_(step), reals_(at::TensorOptions(at::kDouble).device(device)) {
    if (device.is_cpu()) return;
    forces_ = at::zeros({step.all, 3}, reals_);
    virial_ = at::zeros({3, 3}, reals_);
    if (step.atomic_virial) of_atoms_ = at::zeros({step.all, 9}, reals_);
    if (step.atomic_energy) energy_ = at::zeros({step.all}, reals_);
  }

  void add(const at::Tensor &nodes, const at::Tensor &local, const std::array<at::Tensor, 4> &results) {
    const auto &[energy, forces, virial, of_atoms] = results;
    if (!forces_.defined()) return add_here(nodes, local, results);
    const at::Tensor where = nodes.to(forces_.device()), mine = local.to(forces_.device());
    forces_.index_add_(0, where, forces, step_.scale);
    virial_.add_(virial.sum(0), step_.scale);
    if (energy_.defined()) energy_.index_add_(0, where, at::where(mine, energy, 0.0), step_.scale);
    if (of_atoms_.defined()) of_atoms_.index_add_(0, where, of_atoms.reshape({-1, 9}), step_.scale);
  }

  // To the caller's memory; waits for the device.
  void finish() {
    if (!forces_.defined()) return;
    add_rows(forces_.cpu(), step_.forces);
    add_rows(virial_.cpu(), step_.virial);
    if (of_atoms_.defined()) add_rows(of_atoms_.cpu(), step_.atomic_virial);
    if (energy_.defined()) add_rows(energy_.slice(0, 0, step_.local).cpu(), step_.atomic_energy);
  }

 private:
  static void add_rows(const at::Tensor &from, double *to) {
    const double *values = from.const_data_ptr<double>();
    for (int64_t k = 0; k < from.numel(); ++k) to[k] += values[k];
  }

  // On the CPU at once, in loops that cost nothing beside the model.
  void add_here(const at::Tensor &nodes, const at::Tensor &local, const std::array<at::Tensor, 4> &results) {
    const int64_t *atom = nodes.const_data_ptr<int64_t>();
    const bool *mine = local.const_data_ptr<bool>();
    std::array<at::Tensor, 4> rows;
    for (size_t k = 0; k < 4; ++k) rows[k] = results[k].contiguous();
    const double *energy = rows[0].const_data_ptr<double>(), *force = rows[1].const_data_ptr<double>(),
                 *virial = rows[2].const_data_ptr<double>(), *of_atoms = rows[3].const_data_ptr<double>();
    const double scale = step_.scale;
    for (int k = 0; k < 9; ++k) step_.virial[k] += scale * virial[k];
    for (int64_t n = 0; n < nodes.size(0); ++n) {
      double *to = step_.forces + 3 * atom[n];
      for (int k = 0; k < 3; ++k) to[k] += scale * force[3 * n + k];
      if (step_.atomic_energy && mine[n]) step_.atomic_energy[atom[n]] += scale * energy[n];
      if (step_.atomic_virial)
        for (int k = 0; k < 9; ++k) step_.atomic_virial[9 * atom[n] + k] += scale * of_atoms[9 * n + k];
    }
  }

  nequip_step &step_;
  at::TensorOptions reals_;
  at::Tensor forces_, virial_, of_atoms_, energy_;
};

void Model::evaluate(nequip_step &step) {
  std::array<int64_t, 4> place;
  for (size_t k = 0; k < 4; ++k) place[k] = facts_.output(required_outputs[k]);
  step.centers = list_->centers();
  step.blocks = list_->blocks();
  const bool measure = choose_ && !device_.is_cpu() && list_->blocks() > 1;
  if (measure) gpu::watch_memory(device_.index());
  Sums sums(step, device_);
  for (int64_t b = 0; b < list_->blocks(); ++b) {
    double start = now();
    const Inputs inputs = list_->inputs(b);
    step.edges += inputs.edges();
    times_.edges += now() - start;
    start = now();
    const auto outputs = run(inputs);
    times_.model += now() - start;
    start = now();
    sums.add(list_->nodes(b), inputs.local,
             {outputs[place[0]], outputs[place[1]], outputs[place[2]], outputs[place[3]]});
    keep_outputs(b, inputs, outputs);
    times_.edges += now() - start;
  }
  const double start = now();
  sums.finish();
  times_.edges += now() - start;
  if (measure) choose_block(step);
}

void Model::keep_outputs(int64_t block, const Inputs &inputs, const std::vector<at::Tensor> &outputs) {
  for (auto &[name, kept] : kept_) {
    const at::Tensor rows = outputs[kept.place].to(at::kCPU, at::kDouble).reshape({-1, kept.length});
    if (!kept.rows) {
      kept.sum.add_(rows.sum(0));
      continue;
    }
    // Energies are of the block's own atoms; other rows are sums over edges, and so are ghosts'.
    const bool own = name == required_outputs[0];
    kept.sum.index_add_(0, list_->nodes(block).to(at::kCPU),
                        own ? rows * inputs.local.to(at::kCPU).unsqueeze(1) : rows);
  }
}

// As many centres at once as fit, from what the first blocks took.
void Model::choose_block(const nequip_step &step) {
  choose_ = false;
  const double taken = gpu::peak_memory(device_.index()) / double(block_);
  const double fits = part_of_memory * gpu::free_memory(device_.index()) / std::max(taken, 1.0);
  // Equal blocks.
  const double blocks = std::max(1.0, std::ceil(double(step.local) / fits));
  block_ = std::max<int64_t>(first_block / 4, (int64_t) std::ceil(1.1 * double(step.local) / blocks));
  stale_ = true;
}

}  // namespace nequip
