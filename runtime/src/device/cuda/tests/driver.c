// Stands in for the NVIDIA driver's library, so that everything up to its door is tested without a GPU: memory is the
// host's, streams are done at once, a graph is a list. Kernels are those of the sample bundle. What it is asked goes to the
// file in FAKE_CUDA_LOG; the other FAKE_CUDA_ variables say what it is and what goes wrong.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, WRONG_CONTEXT = 201, NOT_READY = 600, ILLEGAL_ADDRESS = 700 };

static int number(const char* name, int otherwise) {
    const char* value = getenv(name);
    return value ? atoi(value) : otherwise;
}
static int named(const char* variable, const char* name) {
    const char* value = getenv(variable);
    return value && !strcmp(value, name);
}
static FILE* notes(void) {
    static FILE* file;
    if (!file) {
        const char* path = getenv("FAKE_CUDA_LOG");
        file = fopen(path ? path : "/dev/null", "a");
        setvbuf(file, NULL, _IOLBF, 0);
    }
    return file;
}

// --- the machine

Result cuInit(unsigned flags) { return flags ? INVALID : number("FAKE_CUDA_INIT", OK); }
Result cuDriverGetVersion(int* version) { return *version = number("FAKE_CUDA_VERSION", 13000), OK; }
Result cuDeviceGetCount(int* count) { return *count = number("FAKE_CUDA_COUNT", 1), OK; }
Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, OK; }
Result cuDeviceGetName(char* name, int bytes, int device) {
    return snprintf(name, bytes, "Stand-in %d", device), OK;
}
static size_t memory(void) { return (size_t)number("FAKE_CUDA_MIB", 512) << 20; }
Result cuDeviceTotalMem_v2(size_t* bytes, int device) { return (void)device, *bytes = memory(), OK; }
Result cuDeviceGetAttribute(int* value, int which, int device) {
    int capability = number("FAKE_CUDA_CAPABILITY", 90);
    (void)device;
    *value = which == 75 ? capability / 10 : which == 76 ? capability % 10 : which == 16 ? 4 : 0;
    return OK;
}
Result cuGetErrorName(Result error, const char** name) {
    *name = error == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR";
    return OK;
}
Result cuGetErrorString(Result error, const char** text) {
    *text = error == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : "something else";
    return OK;
}

// --- contexts: every call below wants the right one to be current

static __thread void* current;
static char context;
#define CURRENT                                  \
    do {                                         \
        if (current != &context) return WRONG_CONTEXT; \
    } while (0)
Result cuDevicePrimaryCtxRetain(void** made, int device) { return (void)device, *made = &context, OK; }
Result cuDevicePrimaryCtxRelease_v2(int device) { return fprintf(notes(), "released %d\n", device), OK; }
Result cuCtxSetCurrent(void* wanted) { return current = wanted, OK; }

// --- streams and events

static Result failed;
static double clock_ms;
Result cuStreamCreate(void** stream, unsigned flags) { CURRENT; return *stream = malloc(1), flags == 1 ? OK : INVALID; }
Result cuStreamDestroy_v2(void* stream) { CURRENT; return free(stream), OK; }
Result cuStreamQuery(void* stream) { CURRENT; return (void)stream, failed; }
Result cuEventCreate(void** event, unsigned flags) { CURRENT; return (void)flags, *event = calloc(1, sizeof(double)), OK; }
Result cuEventDestroy_v2(void* event) { CURRENT; return free(event), OK; }
Result cuEventRecord(void* event, void* stream) { CURRENT; return (void)stream, *(double*)event = ++clock_ms, OK; }
Result cuEventSynchronize(void* event) { CURRENT; return (void)event, failed; }
Result cuEventQuery(void* event) { CURRENT; return (void)event, failed; }
Result cuEventElapsedTime_v2(float* ms, void* from, void* to) {
    CURRENT;
    return *ms = (float)(*(double*)to - *(double*)from), OK;
}

// --- memory

static size_t taken;
Result cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) {
    CURRENT;
    return (void)flags, *memory = malloc(bytes), OK;
}
Result cuMemFreeHost(void* memory) { CURRENT; return free(memory), OK; }
Result cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    CURRENT;
    if (bytes > memory() - taken) return OUT_OF_MEMORY;
    taken += bytes;
    void* made = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(made, 0xa5, bytes);
    return *address = (uint64_t)(uintptr_t)made, OK;
}
Result cuMemFree_v2(uint64_t address) { CURRENT; return free((void*)(uintptr_t)address), OK; }
Result cuMemGetInfo_v2(size_t* left, size_t* total) {
    CURRENT;
    return *total = memory(), *left = memory() - taken, OK;
}
Result cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    CURRENT;
    return (void)stream, memcpy((void*)(uintptr_t)to, from, bytes), OK;
}
Result cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    CURRENT;
    return (void)stream, memcpy(to, (void*)(uintptr_t)from, bytes), OK;
}
Result cuMemsetD8Async(uint64_t to, unsigned char byte, size_t bytes, void* stream) {
    CURRENT;
    return (void)stream, memset((void*)(uintptr_t)to, byte, bytes), OK;
}

// --- modules: functions are names

static size_t parameters(const char* name) {
    if (named("FAKE_CUDA_PARAMETERS", name)) return 8;
    return !strcmp(name, "head") ? 40 : 32;
}
Result cuModuleLoadData(void** module, const void* image) { CURRENT; return *module = (void*)image, OK; }
Result cuModuleUnload(void* module) { CURRENT; return (void)module, fprintf(notes(), "unloaded\n"), OK; }
Result cuModuleGetFunction(void** function, void* module, const char* name) {
    CURRENT;
    return (void)module, *function = strdup(name), OK;
}
Result cuFuncGetAttribute(int* value, int which, void* function) {
    CURRENT;
    return (void)which, (void)function, *value = number("FAKE_CUDA_THREADS", 1024), OK;
}
Result cuFuncSetAttribute(void* function, int which, int value) {
    CURRENT;
    return fprintf(notes(), "attribute %d of %s is %d\n", which, (char*)function, value), OK;
}
Result cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* bytes) {
    CURRENT;
    if (index) return INVALID;
    return *offset = 0, *bytes = parameters(function), OK;
}

// --- launches

typedef struct Step {
    const char* kernel;
    uint64_t args[8];
    double* event;
    struct Step* next;
} Step;
static Step *first, **end;
static int capturing;

static Result run(const Step* step) {
    if (step->event) return *step->event = ++clock_ms, OK;
    const uint64_t* a = step->args;
    const uint32_t* live = (uint32_t*)(uintptr_t)a[0];
    if (named("FAKE_CUDA_FAILS", step->kernel)) return failed = ILLEGAL_ADDRESS, OK;
    if (named("FAKE_CUDA_HANGS", step->kernel)) return failed = NOT_READY, OK;
    fprintf(notes(), "ran %s\n", step->kernel);
    uint32_t* words[5];
    for (int i = 0; i < 5; i++) words[i] = (uint32_t*)(uintptr_t)a[i];
    if (!strcmp(step->kernel, "embed")) {
        for (uint32_t row = 0; row < live[0]; row++) words[2][row] = words[1][row];
    } else if (!strcmp(step->kernel, "gather")) {
        for (uint32_t l = 0; l < live[1]; l++) words[3][l] += words[2][words[1][l]];
    } else if (!strcmp(step->kernel, "head")) {
        for (uint32_t l = 0; l < live[1]; l++) {
            float* logits = (float*)((char*)words[2] + l * a[3]);
            for (int id = 0; id < 8; id++) logits[id] = (float)words[1][l] + *(uint8_t*)words[4] * (float)id;
            words[1][l] = 0;
        }
    }
    return OK;
}
static Result put(Step step) {
    if (!capturing) return run(&step);
    Step* kept = malloc(sizeof kept[0]);
    *kept = step;
    kept->next = NULL;
    *end = kept;
    end = &kept->next;
    return OK;
}

typedef struct {
    uint32_t grid[3], threads[3], shared;
    void* stream;
    struct { uint32_t id, pad; int value[16]; }* attributes;
    uint32_t count;
} Config;

Result cuLaunchKernelEx(const Config* config, void* function, void** arguments, void** extra) {
    CURRENT;
    Step step = {function, {0}, NULL, NULL};
    memcpy(step.args, arguments[0], parameters(function));
    if (extra) return INVALID;
    fprintf(notes(), "%s %s on %u,%u,%u of %u with %u", capturing ? "recorded" : "launched", step.kernel,
            config->grid[0], config->grid[1], config->grid[2], config->threads[0], config->shared);
    if (config->count) fprintf(notes(), ", attribute %u: %d", config->attributes->id, config->attributes->value[0]);
    fprintf(notes(), "\n");
    return put(step);
}
Result cuEventRecordWithFlags(void* event, void* stream, unsigned flags) {
    CURRENT;
    Step step = {NULL, {0}, event, NULL};
    return (void)stream, flags == 1 ? put(step) : INVALID;
}
Result cuStreamBeginCapture_v2(void* stream, int mode) {
    CURRENT;
    if (capturing || mode != 1) return INVALID;
    return (void)stream, first = NULL, end = &first, capturing = 1, OK;
}
Result cuStreamEndCapture(void* stream, void** graph) { CURRENT; return (void)stream, capturing = 0, *graph = first, OK; }
Result cuGraphInstantiateWithFlags(void** made, void* graph, unsigned long long flags) {
    CURRENT;
    return *made = graph, flags ? INVALID : OK;
}
Result cuGraphUpload(void* graph, void* stream) { CURRENT; return (void)graph, (void)stream, OK; }
Result cuGraphDestroy(void* graph) { CURRENT; return (void)graph, OK; }
Result cuGraphExecDestroy(void* graph) { CURRENT; return (void)graph, fprintf(notes(), "destroyed\n"), OK; }
Result cuGraphLaunch(void* graph, void* stream) {
    CURRENT;
    (void)stream;
    for (Step* step = graph; step; step = step->next) run(step);
    return OK;
}
