#include <cmath>
#include <limits>
#include <memory>

#include "nearest.h"

namespace pez {

// A bound in float32 on a float64 quantity that itself carries rounding errors.
static float rounded_up(double v) { return float(v * (1 + 1e-6) + 1e-9); }

void pack(const Table& table, const Threads& threads) {
  const int64_t d = table.weight.columns, d4 = table.d4();
  threads.parallel_for(table.blocks(), 4, [&](int64_t block) {
    std::unique_ptr<double[]> row(new double[d]);
    uint8_t* values = table.values + block * d4 * kTokens * 4;
    for (int64_t i = 0; i < d4 * kTokens * 4; ++i) values[i] = 128;
    for (int t = 0; t < kTokens; ++t) {
      const int64_t at = block * kTokens + t;
      table.scale[at] = 0;
      table.error[at] = -std::numeric_limits<float>::infinity();
      if (at >= table.count) continue;
      load_row(table.weight, table.ids[at], row.get());
      const Scaled scaled = scale_row(row.get(), d);
      table.power[at] = scaled.power;
      table.inverse[at] = scaled.inverse;
      double largest = 0, residual = 0;
      for (int64_t i = 0; i < d; ++i) largest = std::fmax(largest, std::fabs(row[i]));
      const float scale = float(largest * scaled.inverse / 127);
      const double steps = scale > 0 ? scaled.inverse / scale : 0;
      for (int64_t i = 0; i < d; ++i) {
        const double integer = std::fmin(127, std::fmax(-127, std::nearbyint(row[i] * steps)));
        const double off = row[i] * scaled.inverse - integer * scale;
        residual += off * off;
        values[(i / 4 * kTokens + t) * 4 + i % 4] = uint8_t(int(integer) + 128);
      }
      table.scale[at] = scale;
      table.error[at] = rounded_up(std::sqrt(residual));
    }
  });
}

}  // namespace pez
