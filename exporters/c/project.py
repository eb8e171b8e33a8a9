"""The files around an inference: an example program, and how it is made."""

from __future__ import annotations

MAIN = """#include <stdio.h>

#include "model.h"

static float values[MODEL_INPUT_SIZE]; /* zeros: put an input here */
static uint8_t input[MODEL_INPUT_SIZE];
static float output[MODEL_OUTPUT_SIZE];
static uint8_t arena[MODEL_ARENA_SIZE];

int main(void) {
    int i;
    model_quantize_input(values, input);
    model_run(input, output, arena);
    for (i = 0; i < MODEL_OUTPUT_SIZE; i++) printf("%g\\n", (double)output[i]);
    return 0;
}
"""
UNQUANTIZED_MAIN = """#include <stdio.h>

#include "model.h"

static MODEL_INPUT_TYPE input[MODEL_INPUT_SIZE]; /* zeros: put an input here */
static float output[MODEL_OUTPUT_SIZE];
static uint8_t arena[MODEL_ARENA_SIZE];

int main(void) {
    int i;
    model_run(input, output, arena);
    for (i = 0; i < MODEL_OUTPUT_SIZE; i++) printf("%g\\n", (double)output[i]);
    return 0;
}
"""
MAKEFILE = """CFLAGS ?= -std=c99 -O3

example: main.c model.c weights.c model.h weights.h
\t$(CC) $(CFLAGS) main.c model.c weights.c -o example

clean:
\trm -f example

.PHONY: clean
"""
CMAKE = """cmake_minimum_required(VERSION 3.10)
project(model C)
set(CMAKE_C_STANDARD 99)
set(CMAKE_C_EXTENSIONS OFF)
add_library(model STATIC model.c weights.c)
target_include_directories(model PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
add_executable(example main.c)
target_link_libraries(example model)
"""
ONE_MAKEFILE = """CFLAGS ?= -std=c99 -O3

example: main.c model.h
\t$(CC) $(CFLAGS) main.c -o example

clean:
\trm -f example

.PHONY: clean
"""
ONE_CMAKE = """cmake_minimum_required(VERSION 3.10)
project(model C)
set(CMAKE_C_STANDARD 99)
set(CMAKE_C_EXTENSIONS OFF)
add_library(model INTERFACE)
target_include_directories(model INTERFACE ${CMAKE_CURRENT_SOURCE_DIR})
add_executable(example main.c)
target_link_libraries(example model)
"""
