// SPDX-License-Identifier: MIT
#include "gpu.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>

#include <cstdlib>
#include <stdexcept>

namespace nequip::gpu {
namespace {

// Of the driver's cuda.h, whose numbers are fixed.
constexpr int capability_major = 75, capability_minor = 76;

template <class... Arguments> void ask_driver(void *driver, const char *name, Arguments... arguments) {
  const auto function = reinterpret_cast<int (*)(Arguments...)>(dlsym(driver, name));
  const int code = function ? function(arguments...) : -1;
  if (code != 0)
    throw std::runtime_error(std::string("the CUDA driver answers ") + name + " with " + std::to_string(code));
}

auto statistics(int index) { return at::accelerator::getDeviceStats((c10::DeviceIndex) index); }

}  // namespace

int count() {
  return c10::impl::hasDeviceGuardImpl(at::kCUDA) ? c10::impl::getDeviceGuardImpl(at::kCUDA)->deviceCount() : 0;
}

std::string capability(int index) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);  // torch has loaded it; never closed
  if (!driver) throw std::runtime_error(std::string("the CUDA driver can not be loaded: ") + dlerror());
  int device = 0, major = 0, minor = 0;
  ask_driver(driver, "cuInit", 0u);
  ask_driver(driver, "cuDeviceGet", &device, index);
  ask_driver(driver, "cuDeviceGetAttribute", &major, capability_major, device);
  ask_driver(driver, "cuDeviceGetAttribute", &minor, capability_minor, device);
  return std::to_string(major) + "." + std::to_string(minor);
}

int cuda_major() { return (int) (at::detail::getCUDAHooks().versionCUDART() / 1000); }

void let_memory_grow() {
  for (const char *name : {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"})
    if (std::getenv(name)) return;
  if (c10::CachingAllocator::getAllocatorSettings().empty())
    c10::CachingAllocator::setAllocatorSettings("expandable_segments:True");
}

void watch_memory(int index) { at::accelerator::resetPeakStats((c10::DeviceIndex) index); }

double peak_memory(int index) {
  const auto stats = statistics(index);
  return double(stats.allocated_bytes[0].peak - stats.allocated_bytes[0].current);
}

double free_memory(int index) {
  const auto stats = statistics(index);
  return double(at::accelerator::getMemoryInfo((c10::DeviceIndex) index).first) +
         double(stats.reserved_bytes[0].current - stats.allocated_bytes[0].current);
}

int64_t out_of_memory(int index) { return statistics(index).num_ooms; }

void empty_cache() { at::accelerator::emptyCache(); }

}  // namespace nequip::gpu
