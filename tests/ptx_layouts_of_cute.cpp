// Writes the layouts of CuTe (CUTLASS) as JSON, a second source beside the PTX manual: of matrix instructions as
// nested shapes and strides, of swizzles and of operands in shared memory as byte addresses. No GPU is needed:
//   g++ -std=c++17 -w -I CUTLASS/include -I CUDA/include -I CUDA/include/cccl ptx_layouts_of_cute.cpp -o layouts
//   ./layouts ptx_layouts_of_cute.json
// CuTe complains on standard output that it cannot read shared addresses on the host. They are set here instead.
#include <cstdint>
#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/copy_traits_sm90.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>
#include <cutlass/numeric_types.h>
#include <cutlass/version.h>

using namespace cute;
using cutlass::half_t;
using SM90::GMMA::Major;

static FILE* out;

template <class T>
void write_nested(T const& value) {
  if constexpr (is_tuple<T>::value) {
    bool first = true;
    fprintf(out, "[");
    for_each(value, [&](auto const& part) {
      if (!first) fprintf(out, ", ");
      first = false;
      write_nested(part);
    });
    fprintf(out, "]");
  } else {
    fprintf(out, "%d", int(value));
  }
}

template <class L>
void write_layout(const char* name, L const& layout) {
  fprintf(out, ",\n  \"%s\": {\"shape\": ", name);
  write_nested(layout.shape());
  fprintf(out, ", \"stride\": ");
  write_nested(layout.stride());
  fprintf(out, "}");
}

template <class Traits>
void write_mma(const char* name) {
  char full[99];
  const auto write = [&](const char* matrix, auto const& layout) {
    snprintf(full, sizeof(full), "%s %s", name, matrix), write_layout(full, layout);
  };
  write("A", typename Traits::ALayout{});
  write("B", typename Traits::BLayout{});
  write("C", typename Traits::CLayout{});
}

template <class Operation>
void write_copy(const char* name) {
  char full[99];
  snprintf(full, sizeof(full), "%s source", name), write_layout(full, typename Copy_Traits<Operation>::SrcLayout{});
  snprintf(full, sizeof(full), "%s result", name), write_layout(full, typename Copy_Traits<Operation>::DstLayout{});
}

template <class S>
void write_swizzle(const char* name, S const& permute) {
  fprintf(out, ",\n  \"%s\": [", name);
  for (int chunk = 0; chunk < 128; ++chunk) fprintf(out, chunk ? ", %d" : "%d", int(permute(16 * chunk)));
  fprintf(out, "]");
}

// The descriptors of the first two instructions along K in a tile of kRows x 64 halves, and where they find the
// chunks: (rows, 2) for K-major, (16, rows / 8) for MN-major.
template <Major kMajor, int kRows, class Atom>
void write_operand(const char* name, Atom const& atom) {
  constexpr bool kAlongK = kMajor == Major::K;
  const auto layout = tile_to_shape(atom, Shape<Int<kRows>, _64>{});
  const auto tile = make_tensor(make_smem_ptr(reinterpret_cast<half_t*>(uintptr_t(0x2000))), layout);
  fprintf(out, ",\n  \"%s\": [", name);
  for (int step = 0; step < 2; ++step) {
    const auto part = local_tile(tile, Shape<Int<kRows>, _16>{}, make_coord(0, step));
    GmmaDescriptor descriptor = SM90::GMMA::make_gmma_desc<kMajor>(part);
    descriptor.bitfield.start_address_ = uint16_t(reinterpret_cast<uintptr_t>(raw_pointer_cast(part.data())) >> 4);
    fprintf(out, "%s{\"descriptor\": \"%#llx\", \"addresses\": [", step ? ", " : "",
            (unsigned long long)(uint64_t(descriptor)));
    const int outer = kAlongK ? kRows : 16, inner = kAlongK ? 2 : kRows / 8;
    for (int i = 0; i < outer; ++i) {
      for (int j = 0; j < inner; ++j) {
        const half_t* at = kAlongK ? &part(i, 8 * j) : &part(8 * j, i);
        fprintf(out, i + j ? ", %d" : "%d", int(reinterpret_cast<uintptr_t>(at)));
      }
    }
    fprintf(out, "]}");
  }
  fprintf(out, "]");
}

int main(int, char** arguments) {
  out = fopen(arguments[1], "w");
  if (!out) return 1;
  fprintf(out, "{\n  \"CUTLASS\": \"%d.%d.%d\"", CUTLASS_MAJOR, CUTLASS_MINOR, CUTLASS_PATCH);
  write_mma<MMA_Traits<SM80_16x8x16_F32F16F16F32_TN>>("m16n8k16");
  write_mma<MMA_Traits<SM80_16x8x8_F32F16F16F32_TN>>("m16n8k8");
  write_mma<MMA_Traits<SM90::GMMA::MMA_64x256x16_F32F16F16_SS<Major::K, Major::K>>>("m64n256k16 from memory");
  write_mma<MMA_Traits<SM90::GMMA::MMA_64x256x16_F32F16F16_RS<Major::K, Major::K>>>("m64n256k16 from registers");
  write_mma<MMA_Traits<SM90::GMMA::MMA_64x16x16_F32F16F16_SS<Major::K, Major::K>>>("m64n16k16 from memory");
  write_copy<SM75_U32x1_LDSM_N>("ldmatrix.x1");
  write_copy<SM75_U32x4_LDSM_N>("ldmatrix.x4");
  write_copy<SM75_U16x2_LDSM_T>("ldmatrix.x1.trans");
  write_copy<SM75_U16x8_LDSM_T>("ldmatrix.x4.trans");
  write_copy<SM90_U32x1_STSM_N>("stmatrix.x1");
  write_copy<SM90_U16x2_STSM_T>("stmatrix.x1.trans");
  write_swizzle("swizzle 32", Swizzle<1, 4, 3>{});
  write_swizzle("swizzle 64", Swizzle<2, 4, 3>{});
  write_swizzle("swizzle 128", Swizzle<3, 4, 3>{});
  write_operand<Major::K, 32>("K-major 0", SM90::GMMA::Layout_K_INTER_Atom<half_t>{});
  write_operand<Major::K, 32>("K-major 32", SM90::GMMA::Layout_K_SW32_Atom<half_t>{});
  write_operand<Major::K, 32>("K-major 64", SM90::GMMA::Layout_K_SW64_Atom<half_t>{});
  write_operand<Major::K, 32>("K-major 128", SM90::GMMA::Layout_K_SW128_Atom<half_t>{});
  write_operand<Major::MN, 128>("MN-major 0", SM90::GMMA::Layout_MN_INTER_Atom<half_t>{});
  write_operand<Major::MN, 128>("MN-major 32", SM90::GMMA::Layout_MN_SW32_Atom<half_t>{});
  write_operand<Major::MN, 128>("MN-major 64", SM90::GMMA::Layout_MN_SW64_Atom<half_t>{});
  write_operand<Major::MN, 128>("MN-major 128", SM90::GMMA::Layout_MN_SW128_Atom<half_t>{});
  fprintf(out, "\n}\n");
  return fclose(out);
}
