// The neighbour list in tensor operations, on whatever device the model is. SPDX-License-Identifier: MIT
#pragma once
#include "graph.h"

namespace nequip {

// The function `narrow` of a compiled file, see nequip_core.narrow: the edges within the cut-offs in few launches.
using Narrow = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor> &)>;

class DeviceList : public NeighborList {
 public:
  DeviceList(Cutoffs cutoffs, at::Device device, Narrow narrow);  // empty: torch's operators take its place

  void build(const ListRequest &) override;
  void retype(const Atoms &) override;
  void move(const Atoms &) override;
  int64_t blocks() const override { return (int64_t) blocks_.size(); }
  Inputs inputs(int64_t block) override;
  int64_t centers() const override { return centers_; }
  const at::Tensor &nodes(int64_t block) const override { return blocks_[block].nodes; }

 private:
  struct Block {
    at::Tensor nodes, local, types, structure;            // [nodes]
    at::Tensor structure_ptr;                             // [2]
    at::Tensor edge_index;                                // [2, edges], of nodes, sorted by (centre, neighbour)
    at::Tensor by_neighbor, row_ptr, neighbor_ptr;
    at::Tensor image;                                     // [edges] the neighbour's image, an atom; undefined: its node
    at::Tensor limit2;                                    // [edges] squared cut-offs; undefined: all alike
  };

  at::Tensor upload(const double *positions, int64_t atoms) const;  // [atoms, 3]
  at::Tensor pairs(const at::Tensor &centers, double width2) const;  // [2, pairs], of atoms, sorted
  void list_layers(const ListRequest &, const at::Tensor &mine, double width2);
  void make_block(const at::Tensor &centers, const at::Tensor &pairs, const at::Tensor &image, int64_t local);
  void set_types(Block &);
  Inputs narrowed(const Block &, const at::Tensor &positions);

  Cutoffs cutoffs_;
  at::Device device_;
  Narrow narrow_;
  at::Tensor no_shift_, no_reach_;   // zeros: [edges of the largest block, 3], [1]
  at::Tensor pair2_;                 // [types * types] squared cut-offs; undefined: all alike
  at::Tensor positions_, types_;     // [all, 3], [all]
  std::vector<Block> blocks_;
  int64_t centers_ = 0;

  // The cell list, while building.
  at::Tensor atom_, cell_, sorted_cell_, dims_;  // atoms sorted by cell; [all, 3]; [seen]; [3]
};

}  // namespace nequip
