// What the shared library gives out: everything else in it is hidden.
#pragma once

#define NIBBLE_EXPORT __attribute__((visibility("default")))
