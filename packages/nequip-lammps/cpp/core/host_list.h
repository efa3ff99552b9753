// The neighbour list on the CPU: plain loops over a cell list. SPDX-License-Identifier: MIT
#pragma once
#include "graph.h"

namespace nequip {

// Edges of a block, by centre and by neighbour. Points are the images that occur; each is of one of the block's nodes.
struct Rows {
  std::vector<int64_t> row_ptr, neighbor_ptr;    // [nodes + 1]
  std::vector<int32_t> neighbor, by_neighbor;    // [edges] nodes; edges sorted by (neighbour, centre)
  std::vector<int32_t> point;                    // [edges]; empty where each node is one point
};

class HostList : public NeighborList {
 public:
  explicit HostList(Cutoffs cutoffs) : cutoffs_(std::move(cutoffs)), uniform_(cutoffs_.uniform()) {}

  void build(const ListRequest &) override;
  void retype(const Atoms &) override;
  void move(const Atoms &) override;
  int64_t blocks() const override { return (int64_t) blocks_.size(); }
  Inputs inputs(int64_t block) override;
  int64_t centers() const override { return centers_; }
  const at::Tensor &nodes(int64_t block) const override { return blocks_[block].nodes; }

 private:
  // Until some atom has moved by margin / 2, edges longer than cut-off + margin stay outside, and those shorter than
  // cut-off - margin stay inside: only the doubtful ones between are measured.
  static constexpr double margin = 0.5;

  struct Block {
    at::Tensor nodes, types, local;            // [nodes]
    std::vector<int32_t> point_atom;           // [points] atoms, ascending
    std::vector<int32_t> node_point;           // [nodes] representatives; empty where each node is one point
    Rows wide, inner;
    std::vector<int32_t> doubtful, doubtful_center;  // of inner's edges; their centres
    std::vector<int32_t> inside;               // [inner's edges] 1 or 0
    bool fresh = false;                        // inner holds for `listed_at`
    std::vector<double> positions, listed_at;  // [points][3]
    std::vector<double> node_positions;        // [nodes][3], where they are others

    int64_t size() const { return (int64_t) wide.row_ptr.size() - 1; }  // nodes
    const double *centers() const { return node_point.empty() ? positions.data() : node_positions.data(); }
  };

  void collect(const ListRequest &);
  void make_block(const ListRequest &, int64_t first, int64_t last);
  void set_types(Block &, const Atoms &);
  bool place(Block &);
  void renew_inner(Block &);
  void fill_shifts(const Block &, const int64_t *neighbor, int64_t count);
  void measure_doubtful(Block &) const;
  int64_t write_edges(const Block &);
  template <class Visit> void with_cutoffs(const Block &, double extra, Visit) const;

  Cutoffs cutoffs_;
  bool uniform_;
  double skin_ = 0;
  Atoms atoms_{};
  std::vector<Block> blocks_;
  int64_t centers_ = 0;

  // While building: neighbourhoods of the centres, one after the other, as atom indices.
  std::vector<int32_t> center_, listed_;
  std::vector<int64_t> listed_ptr_;
  std::vector<int32_t> representative_;  // by the first atom of the same identity; empty: each atom is its own

  // Buffers that the tensors of a block look into until the next block.
  std::vector<int64_t> edges_, by_neighbor_, row_ptr_, neighbor_ptr_, structure_ptr_, structure_;
  std::vector<double> shifts_;
  int64_t zeros_ = 0;  // of shifts_, how many are known to be zero
  std::vector<int32_t> kept_point_, renumbered_;
};

}  // namespace nequip
