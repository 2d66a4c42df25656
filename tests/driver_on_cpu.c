// As much of a driver of CUDA as Triton asks for: an H100 that runs nothing, and writes down what it was to run.

#include "cuda.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static CUcontext context = (CUcontext)0x1000;

CUresult cuGetErrorString(CUresult error, const char** text) { *text = "no such thing"; return 0; }
CUresult cuDeviceGet(CUdevice* device, int number) { *device = number; return 0; }
CUresult cuCtxGetCurrent(CUcontext* now) { *now = context; return 0; }
CUresult cuCtxSetCurrent(CUcontext now) { return 0; }
CUresult cuCtxGetLimit(size_t* size, CUlimit limit) { *size = 0; return 0; }
CUresult cuCtxSetLimit(CUlimit limit, size_t size) { return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* now, CUdevice device) { *now = context; return 0; }
CUresult cuModuleLoadData(CUmodule* module, const void* image) { *module = (CUmodule)0x2000; return 0; }
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute what, int value) { return 0; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache cache) { return 0; }

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute what, CUdevice device) {
  switch (what) {
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 233472; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    default: *value = 1;
  }
  return 0;
}

// A function is its name.
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  *function = (CUfunction)strdup(name);
  return 0;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute what, CUfunction function) {
  *value = what == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return 0;
}

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute what, CUdeviceptr pointer) {
  *(CUdeviceptr*)value = pointer;
  return 0;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* how, CUfunction function, void** arguments, void** extra) {
  printf("%s %u %u %u %u %p\n", (char*)function, how->gridDimX, how->gridDimY, how->gridDimZ, how->blockDimX,
         (void*)how->hStream);
  return 0;
}
