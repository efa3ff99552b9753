// SPDX-License-Identifier: GPL-2.0-only
#include "core.h"

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace nequip_lammps {
namespace {

std::string folder() {
  Dl_info here;
  if (!dladdr(reinterpret_cast<void *>(&load_core), &here)) return ".";
  const std::string file = here.dli_fname;
  const auto slash = file.find_last_of('/');
  return slash == std::string::npos ? "." : file.substr(0, slash);
}

std::string quoted(const std::string &text) {
  std::string out = "'";
  for (char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

// Have the Python package compile the core beside us; what it says is the reason when it fails.
bool build(const std::string &where, std::string &why) {
  const char *python = std::getenv("NEQUIP_LAMMPS_PYTHON");
  if (!python) {
    why = where + "/libnequip_core.so is missing; make it with `nequip lammps build`";
    return false;
  }
  const std::string command = quoted(python) + " -m nequip_lammps core " + quoted(where) + " 2>&1";
  FILE *pipe = popen(command.c_str(), "r");
  if (!pipe) {
    why = "can not run " + command;
    return false;
  }
  char line[4096];
  while (fgets(line, sizeof line, pipe)) why = line;
  const int status = pclose(pipe);
  while (!why.empty() && why.back() == '\n') why.pop_back();
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

template <class Function> bool find(void *library, const char *name, Function &out) {
  out = reinterpret_cast<Function>(dlsym(library, name));
  return out != nullptr;
}

}  // namespace

const Core *load_core(std::string &why) {
  static Core core;
  static bool loaded = false;
  if (loaded) return &core;
  const char *named = std::getenv("NEQUIP_LAMMPS_CORE");
  std::string file = named ? named : folder() + "/libnequip_core.so";
  if (access(file.c_str(), R_OK) != 0 && (named || !build(folder(), why))) {
    if (named) why = "NEQUIP_LAMMPS_CORE names " + file + ", which can not be read";
    return nullptr;
  }
  // Never closed: torch can not be unloaded.
  void *library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    why = std::string("torch's side can not be loaded: ") + dlerror();
    return nullptr;
  }
  if (!find(library, "nequip_abi", core.abi) || core.abi() != NEQUIP_CORE_ABI) {
    why = file + " is of another version of nequip-lammps; make both parts again with `nequip lammps build`";
    return nullptr;
  }
  if (!find(library, "nequip_open", core.open) || !find(library, "nequip_close", core.close) ||
      !find(library, "nequip_get_facts", core.get_facts) || !find(library, "nequip_compute", core.compute) ||
      !find(library, "nequip_get_times", core.get_times) || !find(library, "nequip_keep", core.keep) ||
      !find(library, "nequip_kept", core.kept)) {
    why = dlerror();
    return nullptr;
  }
  loaded = true;
  return &core;
}

}  // namespace nequip_lammps
