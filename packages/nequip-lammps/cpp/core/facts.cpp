// SPDX-License-Identifier: MIT
#include "facts.h"

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/version.h>

#include <fstream>
#include <stdexcept>

#include "json.h"

namespace nequip {
namespace {

std::string minor_version(const std::string &version) {
  return version.substr(0, version.find('.', version.find('.') + 1));
}

// Of "x86_64 AVX2": machine and instruction set, as torch names them.
bool processor_has(const std::string &isa) {
#if defined(__x86_64__)
  const std::string machine = isa.substr(0, isa.find(' ')), set = isa.substr(isa.find(' ') + 1);
  if (machine != "x86_64") return false;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (set.compare(0, 4, "AVX2") == 0) return avx2;
  if (set.compare(0, 6, "AVX512") == 0)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return true;
#else
  return isa.compare(0, 6, "x86_64") != 0;
#endif
}

std::unordered_map<std::string, std::string> read_metadata(const std::string &file) {
  if (!std::ifstream(file)) throw std::runtime_error("there is no file " + file + ", or it can not be read");
  try {
    return torch::inductor::AOTIModelPackageLoader::load_metadata_from_package(file, "model");
  } catch (const std::exception &) {
    throw std::runtime_error(file + " is no compiled model; make one with " + compile_line("OUT.nequip.pt2", "cpu"));
  }
}

std::string as_text(const Json &item) {
  return item.kind == Json::string ? item.text : std::to_string((int64_t) item.value);
}

void check(const std::string &file, const Json &about) {
  const std::string device = about["device"].text;
  const std::string target = about["target"].text;
  if (target != "lammps")
    throw std::runtime_error(file + " was compiled for target " + target + ", and a pair style needs target lammps: " +
                             compile_line(file, device));
  const std::string built = minor_version(about["torch"].text), ours = minor_version(TORCH_VERSION);
  if (built != ours)
    throw std::runtime_error(file + " was compiled with torch " + built + ", and torch " + ours +
                             " runs it here: compile it here with " + compile_line(file, device));
  if (about.has("isa") && about["isa"].kind == Json::string && !processor_has(about["isa"].text))
    throw std::runtime_error(file + " was compiled for processors with " + about["isa"].text +
                             ", which this one lacks: compile it here with " + compile_line(file, device));
  // A library's operators would have to be registered in this process, and LAMMPS loads none.
  for (const auto &[library, version] : about["kernel_libraries"].members)
    throw std::runtime_error(file + " needs the kernel library " + library + " " + version.text +
                             ", which LAMMPS can not load: compile it with " +
                             compile_line(file, device + " --kernels reference"));
  const Json &units = about["units"];
  if (units["length"].text != "Angstrom" || units["energy"].text != "eV")
    throw std::runtime_error(file + " has units " + units["length"].text + " and " + units["energy"].text +
                             "; expected Angstrom and eV");
}

}  // namespace

std::string compile_line(const std::string &file, const std::string &device) {
  return "`nequip compile MODEL " + file + " --target lammps --device " + device + "`";
}

int64_t Facts::output(const std::string &name) const {
  for (size_t k = 0; k < outputs.size(); ++k)
    if (outputs[k].name == name) return (int64_t) k;
  return -1;
}

Facts read_facts(const std::string &file) {
  const auto metadata = read_metadata(file);
  const auto found = metadata.find("nequip");
  if (found == metadata.end())
    throw std::runtime_error(file + " is a compiled model, but not one of nequip-core; of a published nequip model, "
                                    "`nequip convert` the package and then " + compile_line("OUT.nequip.pt2", "cpu"));
  try {
    const Json about = Json::parse(found->second);
    if (about["format"].text != "nequip-core/compiled" || about["schema"].value != 1)
      throw std::runtime_error("its format is " + about["format"].text + ", schema " + as_text(about["schema"]) +
                               "; expected nequip-core/compiled, schema 1");
    check(file, about);
    Facts facts;
    for (const Json &type : about["types"].items) facts.types.push_back(type.text);
    for (const Json &element : about["elements"].items) facts.elements.push_back(element.text);
    facts.cutoffs.types = (int64_t) facts.types.size();
    facts.cutoffs.largest = about["cutoff_A"].value;
    for (const Json &row : about["pair_cutoffs_A"].items)
      for (const Json &one : row.items) facts.cutoffs.pair.push_back(one.value);
    if ((int64_t) facts.cutoffs.pair.size() != facts.cutoffs.types * facts.cutoffs.types)
      throw std::runtime_error("its pair_cutoffs_A are not one number for each pair of types");
    facts.layers = (int64_t) about["message_passing_layers"].value;
    facts.ghost_distance = about["ghost_distance_A"].value;
    facts.device = about["device"].text;
    facts.capability = about["capability"].text;
    facts.cuda = about["cuda"].text;
    facts.narrows = about["narrows"].truth;
    facts.dtype = about["dtype"].text;
    facts.hash = about["model_hash"].text;
    for (const Json &item : about["outputs"].items) {
      Output output{item["name"].text, {}};
      for (const Json &axis : item["shape"].items) output.shape.push_back(as_text(axis));
      facts.outputs.push_back(output);
    }
    for (const char *name : required_outputs)
      if (facts.output(name) < 0) throw std::runtime_error(std::string("it has no output ") + name);
    return facts;
  } catch (const std::runtime_error &error) {
    const std::string what = error.what();
    throw std::runtime_error(what.compare(0, file.size(), file) == 0 ? what : file + ": " + what);
  }
}

}  // namespace nequip
