// Torch's own threads, by a function of its stable C interface; Python passes the function's address.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>

namespace pez {

class Threads {
 public:
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);

  Threads(std::uintptr_t parallel_for, int count)
      : parallel_for_(reinterpret_cast<ParallelFor>(parallel_for)), count_(count) {}

  int count() const { return count_; }

  // Calls body(i) once for each i from 0 to n; rethrows an exception of any of them.
  template <class F>
  void parallel_for(int64_t n, int64_t grain, const F& body) const {
    struct Context {
      const F& body;
      std::exception_ptr error;
      std::mutex lock;
    } context{body, nullptr, {}};
    const auto run = [](int64_t begin, int64_t end, void* raw) {
      auto& c = *static_cast<Context*>(raw);
      try {
        for (int64_t i = begin; i < end; ++i) c.body(i);
      } catch (...) {
        const std::lock_guard<std::mutex> guard(c.lock);
        c.error = std::current_exception();
      }
    };
    if (n > 0 && parallel_for_(0, n, grain, run, &context) != 0) throw std::runtime_error("torch_parallel_for failed");
    if (context.error) std::rethrow_exception(context.error);
  }

 private:
  ParallelFor parallel_for_;
  int count_;
};

}  // namespace pez
