// What is asked of GPUs, by torch's own interfaces and the driver's: the core names no CUDA library, so that a CPU build of
// torch makes it for both. SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>
#include <string>

namespace nequip::gpu {

int count();
std::string capability(int index);  // "9.0"
int cuda_major();                   // of torch's CUDA, 13

// Torch's segments of memory grow in place, unless the user has set something else: with new ones for each new largest
// number of edges, steps of 20,577 atoms whose edges grew took a sixth longer (H100).
void let_memory_grow();

void watch_memory(int index);        // the peak is what is allocated now
double peak_memory(int index);       // bytes allocated since then at most, beyond what is allocated now
double free_memory(int index);       // bytes, of the device and of torch's cache
int64_t out_of_memory(int index);    // how often torch could not allocate
void empty_cache();

}  // namespace nequip::gpu
