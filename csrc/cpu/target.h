// Functions between PEZ_TARGET("…") and PEZ_TARGET_END may use these instructions; all other code runs on any CPU.
#pragma once

#define PEZ_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define PEZ_TARGET(features) PEZ_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define PEZ_TARGET_END PEZ_PRAGMA(clang attribute pop)
#else
#define PEZ_TARGET(features) PEZ_PRAGMA(GCC push_options) PEZ_PRAGMA(GCC target(features))
#define PEZ_TARGET_END PEZ_PRAGMA(GCC pop_options)
#endif
