// What the current GPU and this build's code for it can do: which kernels a launch may take.
//
// Kernels come in three levels. 80 (Ampere and Ada): mma.sync, cp.async; a set that serves every
// operation. 90 (Hopper): bulk copies, clusters and launches that overlap, and wgmma on 9.0 alone.
// 100 and 120 (Blackwell): the kernels of level 90 without wgmma, and tensor cores for NVFP4.
#pragma once

namespace nibble::cuda {

// 10 x the compute capability of the current GPU (90 for an H200), but not more than the code in
// this build was made for: an H200 that runs code of compute_80 has level 80. The environment
// variable NIBBLE_CUDA_LEVEL takes its place where it is a number, for tests: 80 has an H200 take
// the kernels of level 80, 100 those that a B200 would. Asked once; all GPUs of a process are taken
// for equal.
int cuda_level();

// Whether kernels may use what came with compute capability 9.0.
bool has_hopper_kernels();

// Whether the GPU has, or NIBBLE_CUDA_LEVEL claims, tensor cores for NVFP4.
bool has_fp4_tensor_cores();

// The most shared memory that a block may ask for, in bytes: 227 KB on 9.0 and 10.0, 163 on 8.0 and
// 8.7, 99 on 8.6, 8.9 and 12.0; by cuda_level() where that is lower than the GPU's own.
int most_shared_bytes();

// Whether this build holds machine code, or PTX to make it from, for the current GPU.
bool has_code_for_gpu();

}  // namespace nibble::cuda
