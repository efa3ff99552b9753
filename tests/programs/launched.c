/* The names of the CUDA kernels that a program launches, where no profiler is in it: loaded ahead of all other libraries
   (LD_PRELOAD), it appends a line to the file that NEQUIP_LAUNCHED names, when a kernel is launched for the first time.

   It stands before the two functions of the driver by which the libraries in AOTInductor's packages, which are linked
   to libcuda.so.1, find and launch kernels. Others ask the driver for its functions' addresses: theirs are not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Kernel {
  const void *handle;
  char *name;
  int written;
  struct Kernel *next;
} Kernel;

static Kernel *kernels; /* latest first: a handle may be given out again */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *of_driver(const char *name) {
  void *driver = dlopen("libcuda.so.1", RTLD_LAZY); /* who calls us has loaded it */
  void *found = driver ? dlsym(driver, name) : NULL;
  if (!found) {
    fprintf(stderr, "launched.c: %s is not in libcuda.so.1\n", name);
    abort();
  }
  return found;
}

static void write_name(const char *name) {
  const char *path = getenv("NEQUIP_LAUNCHED");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (!file) return;
  fprintf(file, "%s\n", name);
  fclose(file);
}

int cuModuleGetFunction(void **handle, void *module, const char *name) {
  int (*get)(void **, void *, const char *) = of_driver("cuModuleGetFunction");
  const int code = get(handle, module, name);
  if (code == 0) {
    Kernel *kernel = malloc(sizeof *kernel);
    pthread_mutex_lock(&lock);
    *kernel = (Kernel){*handle, strdup(name), 0, kernels};
    kernels = kernel;
    pthread_mutex_unlock(&lock);
  }
  return code;
}

int cuLaunchKernel(void *handle, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void *stream, void **arguments, void **extra) {
  static int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                       void **);
  pthread_mutex_lock(&lock);
  if (!launch) launch = of_driver("cuLaunchKernel");
  Kernel *kernel = kernels;
  while (kernel && kernel->handle != handle) kernel = kernel->next;
  if (kernel && !kernel->written) {
    kernel->written = 1;
    write_name(kernel->name);
  }
  pthread_mutex_unlock(&lock);
  return launch(handle, x, y, z, block_x, block_y, block_z, shared, stream, arguments, extra);
}
