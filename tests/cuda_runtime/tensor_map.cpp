// cuTensorMapEncodeTiled, which writes the layout of tests/ptx/tensor_map.py and refuses what the driver refuses.
#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr unsigned kRank = 5;

struct Layout {
  char magic[8];
  uint64_t address;
  uint8_t rank, type, element_bytes, interleave, swizzle, fill_nan, zero[2];
  uint64_t sizes[kRank], strides[kRank - 1];
  uint16_t box[kRank];
  uint8_t element_strides[kRank], unused[13];
  uint32_t checksum;
};
static_assert(sizeof(Layout) == sizeof(CUtensorMap), "a tensor map has 128 bytes");

// CRC-32 as in zlib, bit by bit.
uint32_t checksum(const unsigned char* data, size_t bytes) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < bytes; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0u);
  }
  return ~crc;
}

// 0 for a type that is not known.
unsigned element_bytes(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ:
    case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ: return 4;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 8;
    default: return 0;
  }
}

bool valid_type(const Layout& map) {
  const bool floating = map.type >= CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return map.element_bytes && !(map.interleave == 32 && map.swizzle != 32) && (floating || !map.fill_nan);
}

bool valid_tensor(const Layout& map) {
  const unsigned unit = map.interleave == 32 ? 32 : 16;
  if (map.address % unit) return false;
  for (unsigned i = 0; i < map.rank; ++i) {
    if (map.sizes[i] < 1 || map.sizes[i] > uint64_t(1) << 32) return false;
  }
  for (unsigned i = 0; i + 1 < map.rank; ++i) {
    if (map.strides[i] % unit || map.strides[i] >= uint64_t(1) << 40) return false;
  }
  return true;
}

bool valid_box(unsigned rank, const cuuint32_t* box, const cuuint32_t* element_strides) {
  for (unsigned i = 0; i < rank; ++i) {
    if (box[i] < 1 || box[i] > 256 || element_strides[i] < 1 || element_strides[i] > 8) return false;
  }
  return true;
}

bool valid_inner_side(const Layout& map) {
  const unsigned inner = map.box[0] * map.element_bytes;
  return map.interleave || (inner % 16 == 0 && (!map.swizzle || inner <= map.swizzle));
}

}  // namespace

extern "C" __attribute__((visibility("default"))) CUresult cuTensorMapEncodeTiled(
    CUtensorMap* to, CUtensorMapDataType type, cuuint32_t rank, void* address, const cuuint64_t* sizes,
    const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* element_strides,
    CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
    CUtensorMapFloatOOBfill fill) {
  if (!to || reinterpret_cast<uintptr_t>(to) % 64) return CUDA_ERROR_INVALID_VALUE;
  if (!sizes || !box || !element_strides) return CUDA_ERROR_INVALID_VALUE;
  if (unsigned(swizzle) > 3 || unsigned(interleave) > 2 || unsigned(fill) > 1) return CUDA_ERROR_INVALID_VALUE;
  if (rank < (interleave ? 3 : 1) || rank > kRank || (rank > 1 && !strides)) return CUDA_ERROR_INVALID_VALUE;
  if (!valid_box(rank, box, element_strides)) return CUDA_ERROR_INVALID_VALUE;
  Layout map = {};
  std::memcpy(map.magic, "TENSMAP1", sizeof map.magic);
  map.address = reinterpret_cast<uintptr_t>(address);
  map.rank = uint8_t(rank), map.type = uint8_t(type), map.element_bytes = uint8_t(element_bytes(type));
  map.interleave = uint8_t(16 * unsigned(interleave)), map.swizzle = uint8_t(swizzle ? 16 << unsigned(swizzle) : 0);
  map.fill_nan = fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA;
  for (unsigned i = 0; i < rank; ++i) {
    map.sizes[i] = sizes[i], map.box[i] = uint16_t(box[i]), map.element_strides[i] = uint8_t(element_strides[i]);
    if (i + 1 < rank) map.strides[i] = strides[i];
  }
  if (!valid_type(map) || !valid_tensor(map) || !valid_inner_side(map)) return CUDA_ERROR_INVALID_VALUE;
  map.checksum = checksum(reinterpret_cast<const unsigned char*>(&map), offsetof(Layout, checksum));
  std::memcpy(to, &map, sizeof map);
  return CUDA_SUCCESS;
}
