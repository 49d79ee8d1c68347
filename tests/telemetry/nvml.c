/* Stands in for the driver's libnvidia-ml.so.1, which needs a card: two GPUs, the second without a power meter. */

typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { unsigned long long total, free, used; } Memory;

static char cards[2];

int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned int flags) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "Not Supported"; }

int nvmlDeviceGetCount_v2(unsigned int *count) {
  *count = 2;
  return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, char **device) {
  *device = &cards[index];
  return 0;
}

int nvmlDeviceGetUUID(char *device, char *uuid, unsigned int length) {
  const char *name = device == cards ? "GPU-a" : "GPU-b";
  for (unsigned int i = 0; i < 6 && i < length; i++) uuid[i] = name[i];
  return 0;
}

int nvmlDeviceGetUtilizationRates(char *device, Utilization *rates) {
  rates->gpu = 37;
  rates->memory = 5;
  return 0;
}

int nvmlDeviceGetPowerUsage(char *device, unsigned int *milliwatts) {
  *milliwatts = 61500;
  return device == cards ? 0 : 3; /* NVML_ERROR_NOT_SUPPORTED */
}

int nvmlDeviceGetMemoryInfo(char *device, Memory *memory) {
  memory->total = 16ULL << 30;
  memory->used = 1503238553;
  memory->free = memory->total - memory->used;
  return 0;
}
