// The module pez_fast._C: host functions that take addresses and sizes. pez_fast/_cpu knows the tensors behind them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <string>

#include "build_info.h"
#include "cpu/kernels.h"
#include "cpu/nearest.h"
#include "cpu/splice.h"
#include "cuda/simulate.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace {

std::atomic<const pez::Kernels*> chosen{nullptr};

const pez::Kernels& kernels() {
  const pez::Kernels* one = chosen.load();
  return one ? *one : pez::best_kernels();
}

// (address, type, rows, columns, row stride, column stride)
using MatrixTuple = std::tuple<Address, int, int64_t, int64_t, int64_t, int64_t>;
// ids, count, then the addresses of what `pack` writes: values, scale, error, power, inverse
using TableTuple = std::tuple<Address, int64_t, Address, Address, Address, Address, Address>;
using ThreadsTuple = std::tuple<Address, int>;  // torch_parallel_for, number of threads

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

pez::Matrix matrix(const MatrixTuple& m) {
  const auto& [data, type, rows, columns, row_stride, column_stride] = m;
  return {at<void>(data), pez::Type(type), rows, columns, row_stride, column_stride};
}

pez::Table table(const MatrixTuple& weight, const TableTuple& t) {
  const auto& [ids, count, values, scale, error, power, inverse] = t;
  return {matrix(weight),    at<int64_t>(ids),   count, at<uint8_t>(values), at<float>(scale), at<float>(error),
          at<double>(power), at<double>(inverse)};
}

pez::Threads threads(const ThreadsTuple& t) { return {std::get<0>(t), std::get<1>(t)}; }

void define_build(py::module_& m) {
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = PEZ_COMPILER;
    info["date"] = PEZ_BUILD_DATE;
    return info;
  });
  m.def("instruction_sets", &pez::kernel_names, "Those that this CPU has, best first.");
  m.def(
      "instruction_set", [] { return std::string(kernels().name); },
      "What the scan uses: avx512vnni, avxvnni, avx2 or portable.");
  m.def(
      "use",
      [](const std::string& name) {
        const pez::Kernels* one = name == "auto" ? &pez::best_kernels() : pez::kernels_named(name.c_str());
        if (!one) throw py::value_error("name must be an instruction set of this CPU; got '" + name + "'");
        chosen.store(one);
      },
      "Choose an instruction set by name, for tests and measurements; \"auto\" is the best of this CPU.");
}

void define_nearest(py::module_& m) {
  m.def("pack", [](const MatrixTuple& weight, const TableTuple& t, const ThreadsTuple& pool) {
    const py::gil_scoped_release release;
    pez::pack(table(weight, t), threads(pool));
  });

  m.def("nearest", [](const MatrixTuple& x, const MatrixTuple& weight, const TableTuple& t, const ThreadsTuple& pool,
                      Address found, Address cosine) {
    pez::Undecided undecided;
    {
      const py::gil_scoped_release release;
      undecided =
          pez::nearest(matrix(x), table(weight, t), kernels(), threads(pool), at<int64_t>(found), at<float>(cosine));
    }
    return py::make_tuple(undecided.rows, undecided.tokens, undecided.overflowed,
                          py::make_tuple(undecided.certified, undecided.rescored, undecided.rescanned));
  });

  m.def("bounds",
        [](const MatrixTuple& x, const MatrixTuple& weight, const TableTuple& t, Address upper, Address lower) {
          pez::bounds(matrix(x), table(weight, t), kernels(), at<float>(upper), at<float>(lower));
        });
}

void define_splice(py::module_& m) {
  m.def("splice",
        [](Address base, int64_t row_stride, int64_t position_stride, Address hard, Address slots, Address owner,
           const std::array<int64_t, 5>& s, int64_t item, Address out, const ThreadsTuple& pool) {
          const py::gil_scoped_release release;
          pez::splice(at<char>(base), row_stride, position_stride, at<char>(hard), at<int64_t>(slots),
                      at<int64_t>(owner), {s[0], s[1], s[2], s[3], s[4]}, item, at<char>(out), threads(pool));
        });
  m.def("splice_backward", [](Address grad, int type, int64_t row_stride, int64_t position_stride, Address slots,
                              Address owner, const std::array<int64_t, 5>& s, Address total, const ThreadsTuple& pool) {
    const py::gil_scoped_release release;
    pez::splice_backward(at<void>(grad), pez::Type(type), row_stride, position_stride, at<int64_t>(slots),
                         at<int64_t>(owner), {s[0], s[1], s[2], s[3], s[4]}, at<void>(total), threads(pool));
  });
}

// The CUDA kernels' algorithm on the host, for tests. rule: (block, bits), how the tensor cores add.
void define_simulation(py::module_& m) {
  m.def("simulate_cuda",
        [](const MatrixTuple& x, const MatrixTuple& weight, Address ids, int64_t count, Address norm, Address unit,
           int64_t width, const std::array<float, 3>& bounds, const std::array<int, 2>& rule,
           const std::array<Address, 3>& out, const ThreadsTuple& pool) {
          const py::gil_scoped_release release;
          const pez::cuda::Vocabulary table{matrix(weight), at<int64_t>(ids), at<double>(norm), count};
          pez::cuda::simulate(matrix(x), table, at<uint16_t>(unit), width, bounds[0], bounds[1], bounds[2],
                              {rule[0], rule[1]}, {at<int64_t>(out[0]), at<float>(out[1]), at<int32_t>(out[2])},
                              threads(pool));
        });
  m.def(
      "add_as_tensor_cores",
      [](Address query, Address tokens, int64_t width, const std::array<int, 2>& rule, Address score) {
        std::vector<float> value(width);
        std::vector<int16_t> exponent(width);
        for (int64_t k = 0; k < width; ++k) {
          const pez::Half half{at<uint16_t>(query)[k]};
          value[k] = pez::widen(half), exponent[k] = int16_t(pez::cuda::exponent_of(half));
        }
        const pez::cuda::TransposedTile tile(at<uint16_t>(tokens), width);
        pez::cuda::add_as_tensor_cores({rule[0], rule[1]}, value.data(), exponent.data(), tile, width,
                                       at<float>(score));
      },
      "fp16 query (width,) and tokens (128, width) -> score (128,) float32 as tensor cores add, for tests.");
  m.def(
      "halves",
      [](Address from, Address to, int64_t count) {
        for (int64_t i = 0; i < count; ++i) at<uint16_t>(to)[i] = pez::narrow(at<float>(from)[i]).raw;
      },
      "float32 to fp16 as the simulation rounds, for tests.");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The C++ extension of pez_fast.";
  m.attr("TOKENS") = pez::kTokens;
  define_build(m);
  define_nearest(m);
  define_splice(m);
  define_simulation(m);
}
