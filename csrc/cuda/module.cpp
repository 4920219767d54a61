// The module pez_fast._C_cuda: launchers that take addresses, sizes and a stream, which pez_fast/_cuda passes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>

#include "build_info.h"
#include "launch.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace {

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it is reported here, so that no later call finds it
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// (address, type, rows, columns, row stride, column stride)
using MatrixTuple = std::tuple<Address, int, int64_t, int64_t, int64_t, int64_t>;
// ids, count, norm; unit, rows, width, residual, slack
using TableTuple = std::tuple<Address, int64_t, Address, Address, int64_t, int64_t, Address, float>;
using BuffersTuple = std::tuple<Address, Address, Address>;
using AnswerTuple = std::tuple<Address, Address, Address>;

pez::Matrix matrix(const MatrixTuple& m) {
  const auto& [data, type, rows, columns, row_stride, column_stride] = m;
  return {at<void>(data), pez::Type(type), rows, columns, row_stride, column_stride};
}

cudaStream_t stream(Address address) { return reinterpret_cast<cudaStream_t>(address); }

// base, type, three strides; hard or 0, its type; slots, owner; B, S, d, R, L
using SpliceTuple =
    std::tuple<Address, int, std::array<int64_t, 3>, Address, int, Address, Address, std::array<int64_t, 5>>;

pez::cuda::SpliceArgs splice_args(const SpliceTuple& s) {
  const auto& [base, type, strides, hard, hard_type, slots, owner, sizes] = s;
  return {
      at<void>(base),     pez::Type(type),    strides[0], strides[1], strides[2], at<void>(hard), pez::Type(hard_type),
      at<int64_t>(slots), at<int64_t>(owner), sizes[0],   sizes[1],   sizes[2],   sizes[3],       sizes[4]};
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "The CUDA extension of pez_fast.";
  m.attr("TILE") = pez::cuda::kTile;
  m.attr("GROUPS") = pez::cuda::kGroups;
  m.attr("WIDTH") = pez::cuda::kWidth;
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = PEZ_COMPILER;
    info["date"] = PEZ_BUILD_DATE;
    info["architectures"] = PEZ_ARCHITECTURES;
    return info;
  });
  m.def("plans", &pez::cuda::plans,
        "Kernels and the dynamic shared memory that they would take on a card that allows so many bytes, for rows so "
        "wide.");
  m.def("padded_rows", &pez::cuda::padded_rows, "Rows of the buffers for so many queries.");
  m.def("nearest", [](int device, const MatrixTuple& x, const MatrixTuple& weight, const TableTuple& t,
                      const BuffersTuple& b, const AnswerTuple& out, Address to) {
    const auto& [ids, count, norm, unit, rows, width, residual, slack] = t;
    const auto& [query, rounded, keys] = b;
    const auto& [found, cosine, state] = out;
    check(cudaSetDevice(device), "nearest");
    check(pez::cuda::nearest(matrix(x), {matrix(weight), at<int64_t>(ids), at<double>(norm), count},
                             {at<uint16_t>(unit), at<float>(residual), rows, width, slack},
                             {at<uint16_t>(query), at<pez::cuda::Rounded>(rounded), at<pez::cuda::Top2>(keys)},
                             {at<int64_t>(found), at<float>(cosine), at<int32_t>(state)}, stream(to)),
          "nearest");
  });
  m.def("splice", [](int device, const SpliceTuple& s, Address out, Address to) {
    check(cudaSetDevice(device), "splice");
    check(pez::cuda::splice(splice_args(s), at<void>(out), stream(to)), "splice");
  });
  m.def("splice_backward", [](int device, const SpliceTuple& s, Address total, Address to) {
    check(cudaSetDevice(device), "splice_backward");
    check(pez::cuda::splice_backward(splice_args(s), at<void>(total), stream(to)), "splice_backward");
  });
}
