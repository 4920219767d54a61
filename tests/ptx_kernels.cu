// Small kernels, right and wrong ones, for tests/test_ptx_source.py.

#include <cuda_fp16.h>

extern "C" __global__ void indexed(int* out, const int* steps) {  // an array that is indexed lies in local memory
    int own[16];
    for (int i = 0; i < 16; ++i) own[i] = i * 100 + threadIdx.x;
    for (int i = 0; i < 16; ++i) own[steps[i]] += 1000 * i;
    int sum = 0;
    for (int i = 0; i < 16; i += 3) sum += own[steps[(threadIdx.x + i) % 16]];
    out[threadIdx.x] = sum;
}

__device__ __noinline__ float divided(float a, int b) {
    if (b > 20) return a * 2;
    return a / b;
}

extern "C" __global__ void called(float* out, const float* in) {
    float value = in[threadIdx.x];
    if (threadIdx.x % 3) value = divided(value, threadIdx.x);
    out[threadIdx.x] = value;
}

extern "C" __global__ void reversed(int* out, const int* in) {
    __shared__ int values[128];
    values[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = values[127 - threadIdx.x];
}

extern "C" __global__ void racing(int* out, const int* in) {
    __shared__ int values[128];
    values[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = values[127 - threadIdx.x];  // no __syncthreads
}

extern "C" __global__ void beyond(int* out, const int* in) {
    out[threadIdx.x] = in[threadIdx.x + 1];  // one too far
}

extern "C" __global__ void unset(int* out, const int* in) {
    __shared__ int values[128];
    if (threadIdx.x < 127) values[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = values[127 - threadIdx.x];  // the last one was never written
}

extern "C" __global__ void summed(int* out, const int* in) {
    __shared__ int parts[4];
    int value = in[threadIdx.x];
    for (int step = 16; step; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncwarp();
    __syncthreads();
    out[threadIdx.x] = parts[0] + parts[1] + parts[2] + parts[3] + __syncthreads_count(value > 0);
}

extern "C" __global__ void lonely(int* out, const int* in) {
    int value = in[threadIdx.x];
    if (threadIdx.x % 2) value += __shfl_xor_sync(~0u, value, 2);  // half of the lanes are not there
    out[threadIdx.x] = value;
}

extern "C" __global__ void stuck(int* out, const int* in) {
    if (threadIdx.x < 32) {
        __syncthreads();  // the others are at another barrier
        out[threadIdx.x] = in[threadIdx.x];
    } else {
        asm volatile("bar.sync 1;");
    }
}

extern "C" __global__ void counted(int* out, const int* in) {
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    if (in[threadIdx.x] % 2) atomicAdd(&count, 1);
    __syncthreads();
    out[threadIdx.x] = count + __popc(__ballot_sync(~0u, in[threadIdx.x] > 64)) + __popc(__activemask());
}

extern "C" __global__ void halves(__half2* out, const __half2* in) {
    out[threadIdx.x] = __hfma2(in[threadIdx.x], in[threadIdx.x], __float2half2_rn(0.5f));
}
