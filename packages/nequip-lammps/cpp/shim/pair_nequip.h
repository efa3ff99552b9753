// pair_style nequip | allegro [neighbor core|lmplist] [device auto|cpu|cuda:N] [block auto|N]
// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <string>
#include <vector>

#include "core.h"
#include "pair.h"

namespace nequip_lammps {

class PairNequip : public LAMMPS_NS::Pair {
 public:
  PairNequip(LAMMPS_NS::LAMMPS *, std::string name);
  ~PairNequip() override;

  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void compute(int, int) override;
  void finish() override;
  double memory_usage() override;
  int pack_reverse_comm(int, int, double *) override;
  void unpack_reverse_comm(int, int *, double *) override;

  // For compute nequip and nequip/atom: keep an output of the model; whether it has one row per atom.
  bool keep(const std::string &quantity, int length);
  const double *kept(const std::string &quantity) const;
  double energy_scale() const { return scale_; }

 private:
  [[noreturn]] void fail(const std::string &sentence) const;         // on all processes at once
  [[noreturn]] void fail_here(const std::string &sentence) const;    // on this one, which ends all
  void agree(bool failed, const std::string &sentence) const;
  void open_model(const std::string &file);
  void map_types(int, char **);
  void check_input();
  bool see_types();
  void see_images();
  bool gone(int atom) const;
  bool excludes() const;
  static int32_t excluded(const void *pair, int32_t i, int32_t j);
  void reverse_results(double *forces, int width);
  void tally(const nequip_step &);
  void say_work(const nequip_step &);

  std::string name_, file_, device_ = "auto";
  bool lmplist_ = false;
  int block_ = 0;
  const Core *core_ = nullptr;
  nequip_model *model_ = nullptr;
  double scale_ = 1;                // of energies, eV to LAMMPS' unit
  std::vector<int> type_map_;       // [types + 1], -1: NULL
  bool some_null_ = false;

  std::vector<int32_t> types_;      // [all], the model's, at the last step
  std::vector<int32_t> same_;       // [all], when ours was listed
  std::vector<double> energies_;    // [local]
  std::vector<double> virials_;     // [all][9]
  std::vector<double> reverse_;     // [all][width], newton off
  int reverse_width_ = 0;
  LAMMPS_NS::bigint builds_ = -1;   // of LAMMPS' lists when ours was made
  int local_ = -1, all_ = -1;
  bool say_work_ = false;
  int64_t blocks_ = 0;              // of the last evaluation
  nequip_times told_{};             // when times were last told
};

}  // namespace nequip_lammps
