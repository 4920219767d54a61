#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace pez {
namespace {

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx_vnni() {
  unsigned a, b, c, d;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
}

bool has_avx512_vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif

struct Choice {
  const Kernels* kernels;
  bool (*runs)();
};

// Best first.
const Choice kChoices[] = {
#if defined(__x86_64__)
    {&kAvx512Vnni, has_avx512_vnni},
    {&kAvxVnni, has_avx_vnni},
    {&kAvx2, has_avx2},
#endif
    {&kPortable, [] { return true; }},
};

}  // namespace

const Kernels& best_kernels() {
  static const Kernels& best = []() -> const Kernels& {
    for (const Choice& choice : kChoices) {
      if (choice.runs()) return *choice.kernels;
    }
    return kPortable;
  }();
  return best;
}

const Kernels* kernels_named(const char* name) {
  for (const Choice& choice : kChoices) {
    if (std::strcmp(choice.kernels->name, name) == 0) return choice.runs() ? choice.kernels : nullptr;
  }
  return nullptr;
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const Choice& choice : kChoices) {
    if (choice.runs()) names.push_back(choice.kernels->name);
  }
  return names;
}

}  // namespace pez
