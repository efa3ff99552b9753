// SPDX-License-Identifier: MIT
#include "host_list.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace nequip {
namespace {

double distance2(const double *a, const double *b) {
  const double x = b[0] - a[0], y = b[1] - a[1], z = b[2] - a[2];
  return x * x + y * y + z * z;
}

// The atoms that the model sees, sorted into cells of which `across` are at least as wide as what is looked for.
class Cells {
 public:
  Cells(const Atoms &atoms, double width) : atoms_(atoms), width2_(width * width) {
    double low[3] = {INFINITY, INFINITY, INFINITY}, high[3] = {-INFINITY, -INFINITY, -INFINITY};
    int64_t seen = 0;
    for (int64_t i = 0; i < atoms.all; ++i) {
      if (atoms.types[i] < 0) continue;
      ++seen;
      for (int k = 0; k < 3; ++k) {
        low[k] = std::min(low[k], atoms.positions[3 * i + k]);
        high[k] = std::max(high[k], atoms.positions[3 * i + k]);
      }
    }
    for (int k = 0; k < 3; ++k) {
      low_[k] = low[k];
      const double length = seen ? high[k] - low[k] : 0;
      if (!std::isfinite(length)) throw std::runtime_error("an atom's position is not finite");
      // Wider cells where atoms are few and far between.
      const double most = std::cbrt((double) seen) * 4 + 1;
      number_[k] = (int64_t) std::max(1.0, std::min(std::floor(across * length / width), most));
      scale_[k] = length > 0 ? number_[k] / length : 0;
    }
    start_.assign(number_[0] * number_[1] * number_[2] + 1, 0);
    std::vector<int32_t> cell(atoms.all);
    for (int64_t i = 0; i < atoms.all; ++i) {
      if (atoms.types[i] < 0) continue;
      int64_t at[3];
      place(atoms.positions + 3 * i, at);
      cell[i] = (int32_t) ((at[0] * number_[1] + at[1]) * number_[2] + at[2]);
      ++start_[cell[i] + 1];
    }
    std::partial_sum(start_.begin(), start_.end(), start_.begin());
    sorted_.resize(seen);
    where_.resize(3 * seen);
    std::vector<int64_t> next(start_.begin(), start_.end() - 1);
    for (int64_t i = 0; i < atoms.all; ++i) {
      if (atoms.types[i] < 0) continue;
      const int64_t slot = next[cell[i]]++;
      sorted_[slot] = (int32_t) i;
      std::copy_n(atoms.positions + 3 * i, 3, &where_[3 * slot]);
    }
  }

  template <class Add> void neighbors(int32_t i, Add add) const {
    const double *from = atoms_.positions + 3 * (int64_t) i;
    int64_t at[3], low[3], high[3];
    place(from, at);
    for (int k = 0; k < 3; ++k) {
      low[k] = std::max<int64_t>(at[k] - across, 0);
      high[k] = std::min<int64_t>(at[k] + across, number_[k] - 1);
    }
    for (int64_t a = low[0]; a <= high[0]; ++a)
      for (int64_t b = low[1]; b <= high[1]; ++b) {
        const int64_t row = (a * number_[1] + b) * number_[2];
        for (int64_t slot = start_[row + low[2]]; slot < start_[row + high[2] + 1]; ++slot)
          if (distance2(from, &where_[3 * slot]) < width2_ && sorted_[slot] != i) add(sorted_[slot]);
      }
  }

 private:
  static constexpr int across = 2;

  void place(const double *x, int64_t *at) const {
    for (int k = 0; k < 3; ++k)
      at[k] = std::clamp<int64_t>((int64_t) ((x[k] - low_[k]) * scale_[k]), 0, number_[k] - 1);
  }

  const Atoms &atoms_;
  double width2_, low_[3], scale_[3];
  int64_t number_[3];
  std::vector<int64_t> start_;
  std::vector<int32_t> sorted_;
  std::vector<double> where_;
};

// The pairs of a list made by others.
class Outside {
 public:
  Outside(const OutsideList &list, const Atoms &atoms, double width)
      : list_(list), atoms_(atoms), width2_(width * width), has_(atoms.all, 0) {
    for (int64_t k = 0; k < list.lists; ++k) has_[list.atom[k]] = 1;
  }

  template <class Add> void neighbors(int32_t i, Add add) const {
    if (!has_[i]) throw std::runtime_error("the neighbour list of LAMMPS lacks an atom that the model needs");
    for (int32_t k = 0; k < list_.count[i]; ++k) {
      const int32_t j = list_.neighbors[i][k] & list_.mask;
      if (atoms_.types[j] < 0) continue;
      if (distance2(atoms_.positions + 3 * (int64_t) i, atoms_.positions + 3 * (int64_t) j) < width2_) add(j);
    }
  }

 private:
  const OutsideList &list_;
  const Atoms &atoms_;
  double width2_;
  std::vector<uint8_t> has_;
};

template <class Source>
void spread(const Source &source, const ListRequest &request, std::vector<int32_t> &center,
            std::vector<int32_t> &listed, std::vector<int64_t> &listed_ptr, std::vector<int32_t> &representative) {
  const Atoms &atoms = request.atoms;
  const int32_t *same = request.same;
  // By identity: whether an image is a centre, now or in the next layer; and which image stands for all.
  std::vector<uint8_t> heard(atoms.all, 0);
  representative.assign(same ? atoms.all : 0, -1);
  center.clear();
  listed.clear();
  listed_ptr.assign(1, 0);
  for (int32_t i = 0; i < atoms.local; ++i)
    if (atoms.types[i] >= 0) {
      center.push_back(i);
      heard[i] = 1;
      if (same) representative[i] = i;
    }
  size_t done = 0;
  for (int64_t layer = 0; layer < std::max<int64_t>(request.layers, 1); ++layer) {
    const size_t end = center.size();
    const bool last = layer + 1 >= request.layers;
    for (; done < end; ++done) {
      const int32_t i = center[done];
      source.neighbors(i, [&](int32_t j) {
        if (request.excluded && request.excluded(i, j)) return;
        listed.push_back(j);
        const int32_t who = same ? same[j] : j;
        if (same && representative[who] < 0) representative[who] = j;
        if (!last && !heard[who]) {
          heard[who] = 1;
          center.push_back(j);
        }
      });
      listed_ptr.push_back((int64_t) listed.size());
    }
  }
}

int64_t total(const std::vector<int64_t> &pointers) { return pointers.back(); }

}  // namespace

void HostList::build(const ListRequest &request) {
  skin_ = request.skin;
  atoms_ = request.atoms;
  collect(request);
  centers_ = (int64_t) center_.size();
  blocks_.clear();
  const bool split = request.layers == 0 && request.block > 0;
  const int64_t step = split ? request.block : std::max<int64_t>(centers_, 1);
  for (int64_t first = 0; first < centers_; first += step)
    make_block(request, first, std::min(first + step, centers_));
}

void HostList::collect(const ListRequest &request) {
  const double width = cutoffs_.largest + request.skin;
  if (request.outside) {
    spread(Outside(*request.outside, request.atoms, width), request, center_, listed_, listed_ptr_,
           representative_);
  } else {
    spread(Cells(request.atoms, width), request, center_, listed_, listed_ptr_,
           representative_);
  }
}

// Sorting by counting, twice: the neighbourhoods turned over are sorted by neighbour and then by centre; turned over
// again they are sorted by centre and then by neighbour.
void HostList::make_block(const ListRequest &request, int64_t first, int64_t last) {
  const int64_t edges = listed_ptr_[last] - listed_ptr_[first];
  if (edges > INT32_MAX)
    throw std::runtime_error(std::to_string(edges) + " pairs of one process are too many: use more processes");
  const auto begin = listed_.begin() + listed_ptr_[first], end = listed_.begin() + listed_ptr_[last];
  const bool merged = request.same != nullptr;
  auto node_atom = [&](int32_t j) { return merged ? representative_[request.same[j]] : j; };

  Block block;
  constexpr int32_t none = -1, used = 0;
  std::vector<int32_t> point(request.atoms.all, none), node(merged ? request.atoms.all : 0, none);
  std::vector<int32_t> &node_of = merged ? node : point;  // by atom; of representatives
  for (int64_t c = first; c < last; ++c) point[center_[c]] = node_of[center_[c]] = used;
  for (auto j = begin; j != end; ++j) point[*j] = point[node_atom(*j)] = node_of[node_atom(*j)] = used;
  int64_t nodes = 0;
  for (int64_t i = 0; i < request.atoms.all; ++i) {
    if (point[i] == none) continue;
    if (merged && node[i] == used) {
      node[i] = (int32_t) nodes++;
      block.node_point.push_back((int32_t) block.point_atom.size());
    }
    point[i] = (int32_t) block.point_atom.size();
    block.point_atom.push_back((int32_t) i);
  }
  if (!merged) nodes = (int64_t) block.point_atom.size();

  std::vector<int64_t> list_of(nodes, none);
  for (int64_t c = first; c < last; ++c) list_of[node_of[center_[c]]] = c;
  Rows &rows = block.wide;
  rows.neighbor_ptr.assign(nodes + 1, 0);
  rows.row_ptr.assign(nodes + 1, 0);
  for (auto j = begin; j != end; ++j) ++rows.neighbor_ptr[node_of[node_atom(*j)] + 1];
  std::partial_sum(rows.neighbor_ptr.begin(), rows.neighbor_ptr.end(), rows.neighbor_ptr.begin());
  std::vector<int32_t> center_of(edges), point_of(merged ? edges : 0);
  std::vector<int64_t> next(rows.neighbor_ptr.begin(), rows.neighbor_ptr.end() - 1);
  for (int64_t n = 0; n < nodes; ++n) {
    const int64_t c = list_of[n];
    rows.row_ptr[n + 1] = rows.row_ptr[n] + (c < 0 ? 0 : listed_ptr_[c + 1] - listed_ptr_[c]);
    if (c < 0) continue;
    for (int64_t e = listed_ptr_[c]; e < listed_ptr_[c + 1]; ++e) {
      const int64_t at = next[node_of[node_atom(listed_[e])]]++;
      center_of[at] = (int32_t) n;
      if (merged) point_of[at] = point[listed_[e]];
    }
  }
  rows.neighbor.resize(edges);
  rows.by_neighbor.resize(edges);
  rows.point.resize(merged ? edges : 0);
  next.assign(rows.row_ptr.begin(), rows.row_ptr.end() - 1);
  for (int64_t n = 0; n < nodes; ++n)
    for (int64_t p = rows.neighbor_ptr[n]; p < rows.neighbor_ptr[n + 1]; ++p) {
      const int64_t e = next[center_of[p]]++;
      rows.neighbor[e] = (int32_t) n;
      rows.by_neighbor[p] = (int32_t) e;
      if (merged) rows.point[e] = point_of[p];
    }

  block.nodes = at::empty({nodes}, at::kLong);
  // An atom's energy counts in the block in which it is a centre.
  block.local = at::empty({nodes}, at::kBool);
  int64_t *atom = block.nodes.data_ptr<int64_t>();
  bool *local = block.local.data_ptr<bool>();
  for (int64_t n = 0; n < nodes; ++n) {
    atom[n] = block.point_atom[merged ? block.node_point[n] : n];
    local[n] = list_of[n] >= 0 && atom[n] < request.atoms.local;
  }
  set_types(block, request.atoms);
  block.positions.resize(3 * block.point_atom.size());
  if (merged) block.node_positions.resize(3 * nodes);
  blocks_.push_back(std::move(block));
}

void HostList::set_types(Block &block, const Atoms &atoms) {
  // A new tensor: the model may still hold the old one.
  block.types = at::empty_like(block.nodes);
  const int64_t *atom = block.nodes.data_ptr<int64_t>();
  int64_t *types = block.types.data_ptr<int64_t>();
  for (int64_t n = 0; n < block.nodes.size(0); ++n) types[n] = atoms.types[atom[n]];
  block.fresh = false;
}

void HostList::retype(const Atoms &atoms) {
  for (Block &block : blocks_) set_types(block, atoms);
}

void HostList::move(const Atoms &atoms) { atoms_ = atoms; }

// Call `visit` with squared limits: types of centre and neighbour -> (cut-off + extra)^2.
template <class Visit> void HostList::with_cutoffs(const Block &block, double extra, Visit visit) const {
  const auto square = [extra](double cutoff) { return (cutoff + extra) * std::max(cutoff + extra, 0.0); };
  if (uniform_) {
    const double limit = square(cutoffs_.largest);
    visit([limit](int64_t, int32_t) { return limit; });
  } else {
    std::vector<double> limit(cutoffs_.pair.size());
    for (size_t k = 0; k < limit.size(); ++k) limit[k] = square(cutoffs_.pair[k]);
    const int64_t *types = block.types.data_ptr<int64_t>(), number = cutoffs_.types;
    visit([&, types, number](int64_t i, int32_t j) { return limit[types[i] * number + types[j]]; });
  }
}

void HostList::renew_inner(Block &block) {
  const Rows &wide = block.wide;
  Rows &inner = block.inner;
  const int64_t nodes = block.size(), edges = total(wide.row_ptr);
  const double *centers = block.centers(), *points = block.positions.data(), reach = std::min(margin, skin_);
  const bool merged = !wide.point.empty();
  const int32_t *point = merged ? wide.point.data() : wide.neighbor.data();
  inner.row_ptr.resize(nodes + 1);
  inner.neighbor_ptr.resize(nodes + 1);
  inner.neighbor.resize(edges + 1);
  inner.point.resize(merged ? edges + 1 : 0);
  inner.by_neighbor.resize(edges + 1);
  block.doubtful.resize(edges + 1);
  block.doubtful_center.resize(edges + 1);
  block.inside.assign(edges + 1, 1);
  renumbered_.resize(edges);
  int32_t count = 0, doubtful = 0;
  with_cutoffs(block, reach, [&](auto farthest) {
    with_cutoffs(block, -reach, [&](auto nearest) {
      for (int64_t i = 0; i < nodes; ++i) {
        inner.row_ptr[i] = count;
        for (int64_t e = wide.row_ptr[i]; e < wide.row_ptr[i + 1]; ++e) {
          const int32_t j = wide.neighbor[e];
          const double r2 = distance2(centers + 3 * i, points + 3 * (int64_t) point[e]);
          const bool kept = r2 < farthest(i, j);
          inner.neighbor[count] = j;
          if (merged) inner.point[count] = point[e];
          block.doubtful[doubtful] = count;
          block.doubtful_center[doubtful] = (int32_t) i;
          renumbered_[e] = kept ? count : -1;
          doubtful += kept && r2 >= nearest(i, j);
          count += kept;
        }
      }
    });
  });
  inner.row_ptr[nodes] = count;
  block.doubtful.resize(doubtful);
  block.doubtful_center.resize(doubtful);
  int64_t at = 0;
  inner.neighbor_ptr[0] = 0;
  for (int64_t n = 0; n < nodes; ++n) {
    for (int64_t p = wide.neighbor_ptr[n]; p < wide.neighbor_ptr[n + 1]; ++p) {
      const int32_t e = renumbered_[wide.by_neighbor[p]];
      inner.by_neighbor[at] = e;
      at += e >= 0;
    }
    inner.neighbor_ptr[n + 1] = at;
  }
  block.listed_at = block.positions;
  block.fresh = true;
}

void HostList::measure_doubtful(Block &block) const {
  const double *centers = block.centers(), *points = block.positions.data();
  const Rows &inner = block.inner;
  const int32_t *neighbor = inner.neighbor.data(), *point = inner.point.empty() ? neighbor : inner.point.data();
  with_cutoffs(block, 0, [&](auto limit) {
    for (size_t k = 0; k < block.doubtful.size(); ++k) {
      const int32_t e = block.doubtful[k];
      const int64_t i = block.doubtful_center[k];
      block.inside[e] = distance2(centers + 3 * i, points + 3 * (int64_t) point[e]) < limit(i, neighbor[e]);
    }
  });
}

// Neighbours of the edges inside behind the middle of edges_, their centres before it, so that both lie together; for
// each edge of the inner list its number, or -1, in renumbered_; row_ptr_.
int64_t HostList::write_edges(const Block &block) {
  const Rows &inner = block.inner;
  const int64_t nodes = block.size(), middle = total(inner.row_ptr) + 1;
  const bool merged = !inner.point.empty();
  edges_.resize(2 * middle);
  renumbered_.resize(middle);
  kept_point_.resize(merged ? middle : 0);
  const int32_t *neighbor = inner.neighbor.data(), *inside = block.inside.data();
  const int32_t *point = inner.point.data();
  int32_t count = 0, *renumbered = renumbered_.data(), *kept_point = kept_point_.data();
  int64_t *to = edges_.data() + middle;
  for (int64_t i = 0; i < nodes; ++i) {
    row_ptr_[i] = count;
    const int64_t end = inner.row_ptr[i + 1];
    for (int64_t e = inner.row_ptr[i]; e < end; ++e) {
      const int32_t is = inside[e];
      to[count] = neighbor[e];
      if (merged) kept_point[count] = point[e];
      renumbered[e] = count | (is - 1);
      count += is;
    }
  }
  row_ptr_[nodes] = count;
  int64_t *centers = to - count;
  for (int64_t i = 0; i < nodes; ++i)
    for (const int64_t end = row_ptr_[i + 1]; centers < to - count + end; ++centers) *centers = i;
  return count;
}

// This step's positions, and whether some point has left the place where the inner list was made by too much.
bool HostList::place(Block &block) {
  const int64_t points = (int64_t) block.point_atom.size();
  double *positions = block.positions.data(), farthest2 = 0;
  block.listed_at.resize(3 * points);
  const double *before = block.listed_at.data();
  for (int64_t n = 0; n < points; ++n) {
    std::copy_n(atoms_.positions + 3 * (int64_t) block.point_atom[n], 3, positions + 3 * n);
    farthest2 = std::max(farthest2, distance2(before + 3 * n, positions + 3 * n));
  }
  for (size_t n = 0; n < block.node_point.size(); ++n)
    std::copy_n(positions + 3 * (int64_t) block.node_point[n], 3, &block.node_positions[3 * n]);
  const double half = std::min(margin, skin_) / 2;
  return !block.fresh || farthest2 > half * half;
}

Inputs HostList::inputs(int64_t which) {
  Block &block = blocks_[which];
  const int64_t nodes = block.size();
  if (place(block)) renew_inner(block);
  const Rows &rows = block.inner;
  row_ptr_.resize(nodes + 1);
  neighbor_ptr_.resize(nodes + 1);
  by_neighbor_.resize(total(rows.row_ptr) + 1);
  measure_doubtful(block);
  const int64_t count = write_edges(block);
  int64_t *const edges = edges_.data() + total(rows.row_ptr) + 1 - count;
  int64_t at = 0;
  neighbor_ptr_[0] = 0;
  for (int64_t n = 0; n < nodes; ++n) {
    const int64_t end = rows.neighbor_ptr[n + 1];
    for (int64_t p = rows.neighbor_ptr[n]; p < end; ++p) {
      const int32_t e = renumbered_[rows.by_neighbor[p]];
      by_neighbor_[at] = e;
      at += e >= 0;
    }
    neighbor_ptr_[n + 1] = at;
  }
  fill_shifts(block, edges + count, count);
  if ((int64_t) structure_.size() < nodes) structure_.assign(nodes + nodes / 8, 0);
  structure_ptr_ = {0, nodes};

  auto integers = at::TensorOptions(at::kLong);
  auto reals = at::TensorOptions(at::kDouble);
  return Inputs{
      at::from_blob(const_cast<double *>(block.centers()), {nodes, 3}, reals),
      block.types,
      at::from_blob(edges, {2, count}, integers),
      at::from_blob(shifts_.data(), {count, 3}, reals),
      at::from_blob(structure_.data(), {nodes}, integers),
      at::from_blob(structure_ptr_.data(), {2}, integers),
      at::from_blob(row_ptr_.data(), {nodes + 1}, integers),
      at::from_blob(by_neighbor_.data(), {count}, integers),
      at::from_blob(neighbor_ptr_.data(), {nodes + 1}, integers),
      block.local,
  };
}

// From the image that is the node to the image that is the neighbour, Angstrom; zero where they are one.
void HostList::fill_shifts(const Block &block, const int64_t *neighbor, int64_t count) {
  if ((int64_t) shifts_.size() < 3 * count) {
    shifts_.assign(3 * count + 3 * count / 8, 0.0);
    zeros_ = (int64_t) shifts_.size();
  }
  if (block.node_point.empty()) {
    if (zeros_ < 3 * count) std::fill(shifts_.begin(), shifts_.end(), 0.0);
    zeros_ = (int64_t) shifts_.size();
    return;
  }
  zeros_ = 0;
  const double *points = block.positions.data(), *nodes = block.node_positions.data();
  for (int64_t e = 0; e < count; ++e)
    for (int k = 0; k < 3; ++k)
      shifts_[3 * e + k] = points[3 * (int64_t) kept_point_[e] + k] - nodes[3 * neighbor[e] + k];
}

}  // namespace nequip
