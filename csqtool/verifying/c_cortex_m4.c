/* Runs an exported model on the Cortex-M4 of QEMU's board mps2-an386, without an operating system.

   The file `in` holds each sample's float32 values. The file `out` gets for each sample the input as the model reads it, the
   float output, and two numbers of 32 bits: ticks of the timer and bytes of stack that model_run took. Files are reached through
   semihosting: a breakpoint that QEMU answers. */

#include <stddef.h>
#include <stdint.h>

#include "model.h"

enum { OPEN = 1, CLOSE = 2, SAY = 4, WRITE = 5, READ = 6, EXIT = 24, DONE = 0x20026, FAILED = 0x20023 };
enum { READ_BINARY = 1, WRITE_BINARY = 5, PAINT = 0x5a };

#define FLOATING_POINT_ACCESS (*(volatile uint32_t *)0xe000ed88u)
#define TIMER_CONTROL (*(volatile uint32_t *)0x40000000u)
#define TIMER_VALUE (*(volatile uint32_t *)0x40000004u) /* counts down, 25 million a second */
#define TIMER_RELOAD (*(volatile uint32_t *)0x40000008u)

extern uint8_t stack_end[], stack_top[]; /* of the linker script */
int main(void);

static float values[MODEL_INPUT_SIZE], output[MODEL_OUTPUT_SIZE];
#ifdef MODEL_INPUT_TYPE /* the input is not quantized: floats, or whole numbers, which are given as floats */
static MODEL_INPUT_TYPE input[MODEL_INPUT_SIZE];
#else
static uint8_t input[MODEL_INPUT_SIZE];
#endif
static uint8_t arena[MODEL_ARENA_SIZE];

static int32_t ask(int32_t operation, const void *arguments) {
    register int32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void leave(uint32_t reason) {
    for (;;) ask(EXIT, (const void *)reason);
}

static void fault(void) {
    ask(SAY, "a fault of the processor, such as an address without memory\n");
    leave(FAILED);
}

static void start(void) {
    FLOATING_POINT_ACCESS |= 0xfu << 20;
    __asm__ volatile("dsb\n\tisb");
    leave(main() == 0 ? DONE : FAILED);
}

typedef struct {
    uint8_t *stack;
    void (*handlers[15])(void);
} vectors_t;
__attribute__((section(".vectors"), used)) static const vectors_t vectors = {
    stack_top, {start, fault, fault, fault, fault, fault, 0, 0, 0, 0, 0, 0, 0, 0, 0},
};

static int32_t open_file(const char *name, uint32_t length, uint32_t mode) {
    const uint32_t arguments[] = {(uint32_t)name, mode, length};
    return ask(OPEN, arguments);
}

/* Returns how many bytes were not transferred. */
static int32_t transfer(int32_t operation, int32_t file, const void *bytes, uint32_t count) {
    const uint32_t arguments[] = {(uint32_t)file, (uint32_t)bytes, count};
    return ask(operation, arguments);
}

int main(void) {
    const int32_t in = open_file("in", 2, READ_BINARY), out = open_file("out", 3, WRITE_BINARY);
    const int32_t files[] = {out};
    if (in < 0 || out < 0) return 1;
    TIMER_RELOAD = TIMER_VALUE = 0xffffffffu;
    TIMER_CONTROL = 1;
    while (transfer(READ, in, values, sizeof values) == 0) {
        uint32_t i, before, found[2];
        volatile uint8_t *paint;
        uint8_t *stack;
        for (i = 0; i < MODEL_ARENA_SIZE; i++) arena[i] = PAINT; /* what it holds before changes nothing */
#ifdef MODEL_INPUT_TYPE
        for (i = 0; i < MODEL_INPUT_SIZE; i++) input[i] = (MODEL_INPUT_TYPE)values[i];
#else
        model_quantize_input(values, input);
#endif
        __asm__ volatile("mov %0, sp" : "=r"(stack));
        for (paint = stack_end; paint < stack - 64; paint++) *paint = PAINT; /* below what is in use here */
        before = TIMER_VALUE;
        model_run(input, output, arena);
        found[0] = before - TIMER_VALUE;
        for (paint = stack_end; paint < stack && *paint == PAINT;) paint++;
        found[1] = (uint32_t)(stack - paint);
        if (transfer(WRITE, out, input, sizeof input) != 0 || transfer(WRITE, out, output, sizeof output) != 0 ||
            transfer(WRITE, out, found, sizeof found) != 0)
            return 1;
    }
    ask(CLOSE, files);
    return 0;
}
