// A libcuda.so.1 on the processor, for what the daemon asks of it through pycuda. Everything is done at once, in the
// calling thread; memory of the "device" is ordinary memory; launched kernels are the real ones, compiled with this
// file. What comes in is checked as far as the driver would: an unknown pointer, event or stream is an error.

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <tuple>

#include <cuda.h>

struct { unsigned x; } blockIdx = {0}, blockDim = {1}, threadIdx = {0}, gridDim = {1};
static unsigned long long atomicAdd(unsigned long long *at, unsigned long long more)
{
    unsigned long long before = *at;
    *at += more;
    return before;
}
#undef __global__
#undef __device__
#define __global__
#define __device__
#include KERNELS

typedef void (*Call)(const char *);

// Arguments lie in the buffer as in a struct.
template <typename T> static T take(const char *buffer, size_t &offset)
{
    offset = (offset + alignof(T) - 1) / alignof(T) * alignof(T);
    T value;
    memcpy(&value, buffer + offset, sizeof(T));
    offset += sizeof(T);
    return value;
}

template <typename... A> static void apply(void (*kernel)(A...), const char *buffer)
{
    size_t offset = 0;
    std::tuple<A...> arguments{take<A>(buffer, offset)...};
    std::apply(kernel, arguments);
}

#define ENTRY(NAME) {#NAME, [](const char *buffer) { apply(NAME, buffer); }}
static const std::map<std::string, Call> kernels = {
    ENTRY(survey_u1), ENTRY(survey_i1), ENTRY(survey_u2), ENTRY(survey_i2), ENTRY(survey_u4), ENTRY(survey_i4),
    ENTRY(survey_f4), ENTRY(survey_f8), ENTRY(scale_u1),  ENTRY(scale_i1),  ENTRY(scale_u2),  ENTRY(scale_i2),
    ENTRY(scale_u4),  ENTRY(scale_i4),  ENTRY(scale_f4),  ENTRY(scale_f8),  ENTRY(fill),      ENTRY(gather),
    ENTRY(scatter)};

static std::set<void *> registered, handles;
static std::map<char *, size_t> memory;
static size_t used = 0;
static int contexts = 0;
static std::map<CUevent, std::chrono::steady_clock::time_point> recorded;

static size_t room()
{
    const char *text = getenv("FAKE_CUDA_ROOM");
    return text ? strtoull(text, nullptr, 10) : SIZE_MAX;
}

static bool inside(CUdeviceptr at, size_t bytes)
{
    char *p = (char *)at;
    auto next = memory.upper_bound(p);
    if (next == memory.begin())
        return false;
    auto found = std::prev(next);
    return p + bytes <= found->first + found->second;
}

static bool locked(const void *)
{
    return !registered.empty();
}

static CUresult fresh(void **handle)
{
    *handle = malloc(1);
    handles.insert(*handle);
    return CUDA_SUCCESS;
}

static CUresult drop(void *handle)
{
    if (!handles.erase(handle))
        return CUDA_ERROR_INVALID_HANDLE;
    free(handle);
    return CUDA_SUCCESS;
}

static CUresult known(void *handle)
{
    return handles.count(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

extern "C" {
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    *device = ordinal;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDeviceGetName(char *name, int length, CUdevice) { strncpy(name, "Fake card", length); return CUDA_SUCCESS; }
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice) { *bytes = 16ull << 30; return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice)
{
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 8 : 6;
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) { *context = (CUcontext)&contexts; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent_v2(CUcontext) { contexts++; return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
    if (!contexts)
        return CUDA_ERROR_INVALID_CONTEXT;
    contexts--;
    if (context)
        *context = (CUcontext)&contexts;
    return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; return CUDA_SUCCESS; }
CUresult cuCtxDetach(CUcontext) { return CUDA_SUCCESS; }
CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned, CUjit_option *, void **)
{
    if (!strstr((const char *)image, ".visible .entry gather("))
        return CUDA_ERROR_INVALID_IMAGE;
    *module = (CUmodule)&kernels;
    return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule, const char *name)
{
    auto found = kernels.find(name);
    if (found == kernels.end())
        return CUDA_ERROR_NOT_FOUND;
    *function = (CUfunction)&found->second;
    return CUDA_SUCCESS;
}
CUresult cuFuncSetBlockShape(CUfunction, int, int, int) { return CUDA_SUCCESS; }
CUresult cuFuncSetSharedSize(CUfunction, unsigned) { return CUDA_SUCCESS; }
CUresult cuLaunchKernel(CUfunction function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned,
                        unsigned, CUstream stream, void **, void **extra)
{
    if (!blocks || !threads || threads > 1024 || extra[0] != CU_LAUNCH_PARAM_BUFFER_POINTER)
        return CUDA_ERROR_INVALID_VALUE;
    (*(Call *)function)((const char *)extra[1]);
    return known(stream);
}
CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes)
{
    if (bytes > room() || used > room() - bytes)
        return CUDA_ERROR_OUT_OF_MEMORY;
    char *p = (char *)malloc(bytes);
    memset(p, 0xff, bytes);
    memory[p] = bytes;
    used += bytes;
    *at = (CUdeviceptr)p;
    return CUDA_SUCCESS;
}
CUresult cuMemFree_v2(CUdeviceptr at)
{
    auto found = memory.find((char *)at);
    if (found == memory.end())
        return CUDA_ERROR_INVALID_VALUE;
    used -= found->second;
    free(found->first);
    memory.erase(found);
    return CUDA_SUCCESS;
}
CUresult cuMemGetInfo_v2(size_t *available, size_t *total)
{
    *total = 1ull << 40;
    *available = *total - used;
    return CUDA_SUCCESS;
}
CUresult cuMemHostRegister_v2(void *at, size_t, unsigned)
{
    if ((size_t)at % 4096)
        return CUDA_ERROR_INVALID_VALUE;
    return registered.insert(at).second ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
}
CUresult cuMemHostUnregister(void *at)
{
    return registered.erase(at) ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
    if (!inside(to, bytes) || !locked(from))
        return CUDA_ERROR_INVALID_VALUE;
    memcpy((void *)to, from, bytes);
    return known(stream);
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    if (!inside(from, bytes) || !locked(to))
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(to, (void *)from, bytes);
    return known(stream);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    if (!inside(to, bytes) || !inside(from, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    memmove((void *)to, (void *)from, bytes);
    return known(stream);
}
CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, CUstream stream)
{
    if (!inside(at, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    memset((void *)at, value, bytes);
    return known(stream);
}
CUresult cuStreamCreate(CUstream *stream, unsigned) { return fresh((void **)stream); }
CUresult cuStreamDestroy_v2(CUstream stream) { return drop(stream); }
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) { return known(event) ? known(event) : known(stream); }
CUresult cuEventCreate(CUevent *event, unsigned) { return fresh((void **)event); }
CUresult cuEventDestroy_v2(CUevent event) { return drop(event); }
CUresult cuEventRecord(CUevent event, CUstream stream)
{
    recorded[event] = std::chrono::steady_clock::now();
    return known(event) ? known(event) : known(stream);
}
CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent from, CUevent to)
{
    if (!recorded.count(from) || !recorded.count(to))
        return CUDA_ERROR_INVALID_HANDLE;
    *milliseconds = std::chrono::duration<float, std::milli>(recorded[to] - recorded[from]).count();
    return CUDA_SUCCESS;
}
CUresult cuEventSynchronize(CUevent event)
{
    const char *broken = getenv("FAKE_CUDA_BROKEN");
    return broken && *broken ? CUDA_ERROR_ILLEGAL_ADDRESS : known(event);
}
CUresult cuGetErrorString(CUresult, const char **text) { *text = "an error of the fake card"; return CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult, const char **text) { *text = "CUDA_ERROR"; return CUDA_SUCCESS; }
}
