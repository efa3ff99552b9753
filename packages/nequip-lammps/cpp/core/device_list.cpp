// SPDX-License-Identifier: MIT
#include "device_list.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cartesian_prod.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <algorithm>
#include <stdexcept>

namespace nequip {
namespace {

// Centres whose candidates are looked at together: some 8 million pairs in a dense system.
constexpr int64_t chunk = 8192;

// nequip_core.narrow.MOST_EDGES
constexpr int64_t most_narrowed = ((int64_t{1} << 31) - 1) / 3;

// Rows of `starts` .. `starts + counts` one after the other: [sum of counts], with the row that each belongs to.
std::pair<at::Tensor, at::Tensor> ranges(const at::Tensor &starts, const at::Tensor &counts) {
  auto ends = counts.cumsum(0);
  const int64_t total = ends.numel() ? ends[-1].item<int64_t>() : 0;
  auto row = at::repeat_interleave(at::arange(counts.size(0), counts.options()), counts, std::nullopt, total);
  auto within = at::arange(total, counts.options()) - (ends - counts).index_select(0, row);
  return {starts.index_select(0, row) + within, row};
}

// Where each segment of a sorted index starts, and the end: [segments + 1].
at::Tensor pointers(const at::Tensor &sorted, int64_t segments) {
  return at::searchsorted(sorted, at::arange(segments + 1, sorted.options()));
}

at::Tensor distance2(const at::Tensor &positions, const at::Tensor &i, const at::Tensor &j) {
  return (positions.index_select(0, j) - positions.index_select(0, i)).square_().sum(1);
}

at::Tensor counted(const at::Tensor &mask) { return at::constant_pad_nd(mask.cumsum(0), {1, 0}); }

}  // namespace

DeviceList::DeviceList(Cutoffs cutoffs, at::Device device, Narrow narrow)
    : cutoffs_(std::move(cutoffs)), device_(device), narrow_(std::move(narrow)) {
  if (cutoffs_.uniform()) return;
  auto pair = at::from_blob(cutoffs_.pair.data(), {(int64_t) cutoffs_.pair.size()}, at::TensorOptions(at::kDouble));
  pair2_ = pair.square().to(device_);
}

at::Tensor DeviceList::upload(const double *positions, int64_t atoms) const {
  auto view = at::from_blob(const_cast<double *>(positions), {atoms, 3}, at::TensorOptions(at::kDouble));
  return view.to(device_, at::kDouble, /*non_blocking=*/false, /*copy=*/true);
}

void DeviceList::move(const Atoms &atoms) { positions_ = upload(atoms.positions, atoms.all); }

void DeviceList::retype(const Atoms &atoms) {
  auto view = at::from_blob(const_cast<int32_t *>(atoms.types), {atoms.all}, at::TensorOptions(at::kInt));
  types_ = view.to(at::kLong).to(device_);
  for (Block &block : blocks_) set_types(block);
}

void DeviceList::set_types(Block &block) {
  block.types = types_.index_select(0, block.nodes);
  if (!pair2_.defined()) return;
  auto types = block.types.index_select(0, block.edge_index.flatten()).view({2, -1});
  block.limit2 = pair2_.index_select(0, types[0] * cutoffs_.types + types[1]);
}

void DeviceList::build(const ListRequest &request) {
  if (request.excluded || request.outside) throw std::logic_error("DeviceList lists all pairs itself");
  const Atoms &atoms = request.atoms;
  blocks_.clear();
  retype(atoms);
  move(atoms);
  const double width = cutoffs_.largest + request.skin;

  auto seen = (types_ >= 0).nonzero().squeeze(1);
  auto mine = seen.masked_select(seen < atoms.local);
  centers_ = mine.size(0);
  if (centers_ == 0) return;
  auto low = std::get<0>(positions_.index_select(0, seen).min(0));
  if (!at::isfinite(positions_.index_select(0, seen)).all().item<bool>())
    throw std::runtime_error("an atom's position is not finite");
  cell_ = ((positions_ - low) / width).floor().to(at::kLong);
  auto cell = cell_.index_select(0, seen);
  dims_ = std::get<0>(cell.max(0)) + 1;
  auto id = (cell.select(1, 0) * dims_[1] + cell.select(1, 1)) * dims_[2] + cell.select(1, 2);
  at::Tensor order;
  std::tie(sorted_cell_, order) = id.sort();
  atom_ = seen.index_select(0, order);

  if (request.layers == 0) {
    const int64_t step = request.block > 0 ? request.block : centers_;
    for (int64_t first = 0; first < centers_; first += step) {
      auto centers = mine.slice(0, first, std::min(first + step, centers_));
      make_block(centers, pairs(centers, width * width), at::Tensor(), atoms.local);
    }
  } else {
    list_layers(request, mine, width * width);
  }
  atom_ = cell_ = sorted_cell_ = dims_ = at::Tensor();
  if (!narrow_) return;
  int64_t largest = 0;
  for (const Block &block : blocks_) largest = std::max(largest, block.edge_index.size(1));
  no_shift_ = at::zeros({largest, 3}, positions_.options());
  no_reach_ = at::zeros({1}, positions_.options());
}

// Message passing: the neighbourhoods of the own atoms, then of the ghosts that these hear, and so on.
void DeviceList::list_layers(const ListRequest &request, const at::Tensor &mine, double width2) {
  const int64_t all = request.atoms.all;
  auto same = at::arange(all, types_.options());
  if (request.same) {
    auto view = at::from_blob(const_cast<int32_t *>(request.same), {all}, at::TensorOptions(at::kInt));
    same = view.to(at::kLong).to(device_);
  }
  // By identity: the image that stands for all; `all` where none was reached yet.
  auto representative = at::full({all}, all, types_.options());
  representative.index_copy_(0, mine, mine);
  std::vector<at::Tensor> parts, layers;
  auto next = mine;
  for (int64_t layer = 0; layer < request.layers; ++layer) {
    layers.push_back(next);
    parts.push_back(pairs(next, width2));
    const auto &reached = parts.back()[1];
    auto first = at::full({all}, all, types_.options());
    first.scatter_reduce_(0, same.index_select(0, reached), reached, "amin");
    auto fresh = (representative == all).logical_and_(first < all);
    next = first.masked_select(fresh);
    representative = at::where(fresh, first, representative);
  }
  auto centers = std::get<0>(at::cat(layers).sort());
  centers_ = centers.size(0);
  auto whole = at::cat(parts, 1);
  auto node = representative.index_select(0, same.index_select(0, whole[1]));
  auto sorted = std::get<1>((whole[0] * all + node).sort(/*stable=*/true, 0, false));
  auto edges = at::stack({whole[0], node}).index_select(1, sorted);
  make_block(centers, edges, request.same ? whole[1].index_select(0, sorted) : at::Tensor(), request.atoms.local);
}

// All pairs of centres and seen atoms within the width, sorted by (centre, neighbour) where the centres are.
at::Tensor DeviceList::pairs(const at::Tensor &centers, double width2) const {
  std::vector<at::Tensor> parts;
  auto step = at::arange(-1, 2, centers.options());
  auto around = at::cartesian_prod({step, step});  // [9, 2]: rows of three cells, which are consecutive
  for (int64_t first = 0; first < centers.size(0); first += chunk) {
    auto i = centers.slice(0, first, std::min(first + chunk, centers.size(0)));
    auto cell = cell_.index_select(0, i);
    auto xy = cell.slice(1, 0, 2).unsqueeze(1) + around.unsqueeze(0);  // [centres, 9, 2]
    auto inside = ((xy >= 0) & (xy < dims_.slice(0, 0, 2))).all(2);
    auto row = (xy.select(2, 0) * dims_[1] + xy.select(2, 1)) * dims_[2];
    auto z = cell.select(1, 2).unsqueeze(1);
    auto begin = at::searchsorted(sorted_cell_, (row + (z - 1).clamp_min(0)).contiguous());
    auto end = at::searchsorted(sorted_cell_, (row + at::minimum(z + 1, dims_[2] - 1)).contiguous(), false, true);
    auto counts = at::where(inside, end - begin, at::zeros_like(begin)).flatten();
    auto [slot, which] = ranges(begin.flatten(), counts);
    auto j = atom_.index_select(0, slot);
    auto center = i.index_select(0, which.div(9, "floor"));
    auto keep = (distance2(positions_, center, j) < width2).logical_and_(center != j).nonzero().squeeze(1);
    center = center.index_select(0, keep);
    j = j.index_select(0, keep);
    auto sorted = (center * types_.size(0) + j).argsort();
    parts.push_back(at::stack({center.index_select(0, sorted), j.index_select(0, sorted)}));
  }
  return parts.empty() ? at::empty({2, 0}, centers.options()) : at::cat(parts, 1);
}

void DeviceList::make_block(const at::Tensor &centers, const at::Tensor &pairs, const at::Tensor &image,
                            int64_t local) {
  Block block;
  const int64_t all = types_.size(0);
  auto center = at::zeros({all}, types_.options().dtype(at::kBool));
  center.index_fill_(0, centers, true);
  auto used = center.clone();
  used.index_fill_(0, pairs[1], true);
  block.nodes = used.nonzero().squeeze(1);
  auto node = used.cumsum(0).sub_(1);
  block.image = image;
  // An atom's energy counts in the block in which it is a centre.
  block.local = center.index_select(0, block.nodes).logical_and_(block.nodes < local);
  block.edge_index = node.index_select(0, pairs.flatten()).view({2, -1}).contiguous();
  const int64_t nodes = block.nodes.size(0);
  block.structure = at::zeros({nodes}, types_.options());
  block.structure_ptr = at::tensor({(int64_t) 0, nodes}, at::TensorOptions(at::kLong)).to(device_);
  block.row_ptr = pointers(block.edge_index[0], nodes);
  at::Tensor sorted;
  std::tie(sorted, block.by_neighbor) = block.edge_index[1].sort(/*stable=*/true, 0, false);
  block.neighbor_ptr = pointers(sorted, nodes);
  set_types(block);
  blocks_.push_back(std::move(block));
}

Inputs DeviceList::inputs(int64_t which) {
  const Block &block = blocks_[which];
  auto positions = positions_.index_select(0, block.nodes);
  const int64_t wide = block.edge_index.size(1);
  if (narrow_ && wide > 0 && wide <= most_narrowed) return narrowed(block, positions);
  // Order, pointers and permutation of the kept edges follow from how many are kept before each.
  auto to = block.image.defined() ? positions_.index_select(0, block.image)
                                  : positions.index_select(0, block.edge_index[1]);
  auto r2 = (to - positions.index_select(0, block.edge_index[0])).square_().sum(1);
  auto keep = block.limit2.defined() ? r2 < block.limit2 : r2 < cutoffs_.largest * cutoffs_.largest;
  auto rows = keep.nonzero().squeeze(1);
  auto keep_by_neighbor = keep.index_select(0, block.by_neighbor);
  auto before = counted(keep);
  auto edge_index = block.edge_index.index_select(1, rows);
  auto shift = block.image.defined() ? to.index_select(0, rows) - positions.index_select(0, edge_index[1])
                                     : at::zeros({rows.size(0), 3}, positions.options());
  return Inputs{
      positions,
      block.types,
      edge_index,
      shift,
      block.structure,
      block.structure_ptr,
      before.index_select(0, block.row_ptr),
      before.index_select(0, block.by_neighbor.masked_select(keep_by_neighbor)),
      counted(keep_by_neighbor).index_select(0, block.neighbor_ptr),
      block.local,
  };
}

// LAMMPS says when atoms have moved too far, so that they are within reach of where they are.
Inputs DeviceList::narrowed(const Block &block, const at::Tensor &positions) {
  auto shift = no_shift_.slice(0, 0, block.edge_index.size(1));
  if (block.image.defined())
    shift = positions_.index_select(0, block.image) - positions.index_select(0, block.edge_index[1]);
  const auto found = narrow_({positions, positions, no_reach_, block.types, block.edge_index, shift, block.row_ptr,
                              block.by_neighbor, block.neighbor_ptr});
  const int64_t edges = found[0].cpu().const_data_ptr<int64_t>()[1];
  return Inputs{
      positions,
      block.types,
      found[1].slice(0, 0, 2 * edges).view({2, edges}),
      found[2].slice(0, 0, edges),
      block.structure,
      block.structure_ptr,
      found[3],
      found[4].slice(0, 0, edges),
      found[5],
      block.local,
  };
}

}  // namespace nequip
