/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A plugin of QEMU's user-mode emulation: writes down which instructions a part of a program executes.
 *
 * It is built against QEMU's plugin interface and loaded into QEMU, hence its licence, which is QEMU's own and not that
 * of the package around it. Nothing else of the package is linked with it; the package reads the files it writes.
 *
 * The program marks a part by a system call that fails and does nothing: lseek(-1, number, MAGIC), with an odd number
 * where trace number / 2 begins and an even one where it ends. A trace is a file FOLDER/<number / 2>.trace of 32-bit
 * numbers, in the order of the machine: how many distinct blocks were executed, then for each the count of its
 * instructions and they themselves, then all executed blocks, by their place in that list.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Of QEMU's interface, version 1, what is used here. */
typedef uint64_t qemu_plugin_id_t;
struct qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*block_translated)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*block_executed)(unsigned int cpu, void *data);
typedef void (*system_call)(qemu_plugin_id_t, unsigned int cpu, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t,
                            uint64_t, uint64_t, uint64_t, uint64_t);
enum { NO_REGISTERS };
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, block_translated);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, block_executed, int registers, void *data);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, system_call);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

#define MAGIC 0x68776370u
#define LSEEK 62 /* on aarch64 */
#define FIRST_ROOM (1u << 16)

struct numbers {
    uint32_t *values;
    size_t count, room;
};

static struct numbers blocks, offsets, executed; /* offsets: where in blocks each one begins */
static bool tracing;
static unsigned int traced_cpu;
static const char *folder;

static void append(struct numbers *to, uint32_t value)
{
    if (to->count == to->room) {
        to->room = to->room ? 2 * to->room : FIRST_ROOM;
        to->values = realloc(to->values, to->room * sizeof *to->values);
        if (!to->values) {
            fprintf(stderr, "trace: no memory for %zu numbers\n", to->room);
            abort();
        }
    }
    to->values[to->count++] = value;
}

static void on_executed(unsigned int cpu, void *place)
{
    if (tracing && cpu == traced_cpu) {
        append(&executed, (uint32_t)(uintptr_t)place);
    }
}

static void on_translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    size_t count = qemu_plugin_tb_n_insns(block), number = offsets.count;
    append(&offsets, (uint32_t)blocks.count);
    append(&blocks, (uint32_t)count);
    for (size_t place = 0; place < count; place++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, place)), sizeof word);
        append(&blocks, word);
    }
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_executed, NO_REGISTERS, (void *)number);
}

/* Whole, also where a signal for the program interrupts a call. */
static bool write_all(int file, const uint32_t *values, size_t count)
{
    const char *data = (const char *)values;
    size_t left = count * sizeof *values;
    while (left) {
        ssize_t written = write(file, data, left);
        if (written < 0 && errno != EINTR) {
            return false;
        }
        if (written > 0) {
            data += written;
            left -= (size_t)written;
        }
    }
    return true;
}

static void write_trace(uint64_t number)
{
    char name[4096];
    int file;
    struct numbers used = {0};
    uint32_t *places = calloc(offsets.count + 1, sizeof *places), distinct = 0;
    if (!places) {
        abort();
    }
    for (size_t step = 0; step < executed.count; step++) {
        uint32_t block = executed.values[step];
        if (!places[block]) {
            const uint32_t *words = blocks.values + offsets.values[block];
            places[block] = ++distinct;
            for (uint32_t word = 0; word <= words[0]; word++) {
                append(&used, words[word]);
            }
        }
        executed.values[step] = places[block] - 1;
    }
    snprintf(name, sizeof name, "%s/%" PRIu64 ".trace", folder, number);
    do {
        file = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    } while (file < 0 && errno == EINTR);
    if (file < 0 || !write_all(file, &distinct, 1) || !write_all(file, used.values, used.count) ||
        !write_all(file, executed.values, executed.count)) {
        fprintf(stderr, "trace: cannot write %s: %s\n", name, strerror(errno));
        abort();
    }
    close(file);
    free(places);
    free(used.values);
}

static void on_system_call(qemu_plugin_id_t id, unsigned int cpu, int64_t call, uint64_t file, uint64_t number,
                           uint64_t magic, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    if (call != LSEEK || (uint32_t)magic != MAGIC || (int32_t)file != -1) {
        return;
    }
    if (number & 1) {
        executed.count = 0;
        traced_cpu = cpu;
        tracing = true;
    } else if (tracing) {
        tracing = false;
        write_trace(number / 2 - 1);
    }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int count, char **arguments)
{
    for (int place = 0; place < count; place++) {
        if (!strncmp(arguments[place], "folder=", 7)) {
            folder = strdup(arguments[place] + 7);
        }
    }
    if (!folder) {
        fprintf(stderr, "trace: the folder for traces is given as folder=PATH\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    return 0;
}
