// What the model reads, and what a neighbour list is made of. SPDX-License-Identifier: MIT
#pragma once
#include <ATen/core/Tensor.h>
#include <cstdint>
#include <functional>
#include <vector>

namespace nequip {

// The atoms of a process: its own first, then ghosts, which are images of its own and of others' atoms.
struct Atoms {
  int64_t local, all;
  const double *positions;  // [all][3], Angstrom
  const int32_t *types;     // [all]; -1: not seen by the model
};

struct Cutoffs {
  int64_t types;
  std::vector<double> pair;  // [types][types], Angstrom, [centre][neighbour]
  double largest;

  bool uniform() const {
    for (double one : pair)
      if (one != largest) return false;
    return true;
  }
};

// A list made by others, of which we take the pairs.
struct OutsideList {
  int64_t lists;
  const int32_t *atom, *count;
  int32_t *const *neighbors;
  int32_t mask;
};

struct ListRequest {
  Atoms atoms;
  double skin;     // Angstrom
  int64_t layers;  // of message passing; 0: strictly local
  int64_t block;   // centres per block, strictly local models only; 0: one block
  const int32_t *same;  // [all] the first atom of the same identity; null: images are atoms of their own
  std::function<bool(int32_t, int32_t)> excluded;  // empty: none
  const OutsideList *outside;                      // null: ours
};

// The graph's tensors in the order of the exported signature, see nequip_core.graph.Graph.
struct Inputs {
  at::Tensor positions, types, edge_index, edge_shift, structure, structure_ptr, row_ptr, by_neighbor, neighbor_ptr,
      local;

  std::vector<at::Tensor> list() const {
    return {positions, types,   edge_index,  edge_shift,   structure,
            structure_ptr, row_ptr, by_neighbor, neighbor_ptr, local};
  }
  int64_t edges() const { return edge_index.size(1); }
};

// Images: with `same`, all images of an atom are one node of the graph, and an edge to another image than the node's
// representative has the difference as its shift. The representative of an own atom is itself, that of a ghost the image
// that is reached first from the own atoms, whose surroundings are as complete as they need to be.
//
// A neighbour list, in blocks of centre atoms that are evaluated one after the other; one block unless the model is
// strictly local. A block holds its centres and all atoms that these have as neighbours.
class NeighborList {
 public:
  virtual ~NeighborList() = default;
  // List all pairs within cut-off + skin: of local atoms, and for message passing of the ghosts that they hear from.
  virtual void build(const ListRequest &) = 0;
  virtual void retype(const Atoms &) = 0;
  // Positions of this step, then one block after the other.
  virtual void move(const Atoms &) = 0;
  virtual int64_t blocks() const = 0;
  virtual Inputs inputs(int64_t block) = 0;    // edges within the cut-offs at this step's positions
  virtual int64_t centers() const = 0;         // atoms with listed neighbourhoods, ghosts among them
  virtual const at::Tensor &nodes(int64_t block) const = 0;  // [nodes] the atom of each, ascending
};

}  // namespace nequip
