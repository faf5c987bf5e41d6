/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A plugin of QEMU's user-mode emulation: writes down which instructions a part of a program executes.
 *
 * It is built against QEMU's plugin interface and loaded into QEMU, hence its licence, which is QEMU's own and not that
 * of the package around it. Nothing else of the package is linked with it; the package reads the files it writes.
 *
 * The program marks a part by a system call that fails and does nothing: lseek(-1, number, MAGIC), with an odd number
 * where trace number / 2 begins and an even one where it ends. A trace is a file FOLDER/<number / 2>.trace of 32-bit
 * numbers, in the order of the machine: how many blocks the program has been translated to so far, then for each the
 * count of its instructions and they themselves, then the executed blocks, by their place in that list.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static struct numbers blocks, executed;
static uint32_t block_count;
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
    size_t count = qemu_plugin_tb_n_insns(block);
    append(&blocks, (uint32_t)count);
    for (size_t place = 0; place < count; place++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, place)), sizeof word);
        append(&blocks, word);
    }
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_executed, NO_REGISTERS, (void *)(uintptr_t)block_count++);
}

static void write_trace(uint64_t number)
{
    char name[4096];
    snprintf(name, sizeof name, "%s/%" PRIu64 ".trace", folder, number);
    FILE *file = fopen(name, "wb");
    bool written = file && fwrite(&block_count, sizeof block_count, 1, file) == 1 &&
                   fwrite(blocks.values, sizeof *blocks.values, blocks.count, file) == blocks.count &&
                   fwrite(executed.values, sizeof *executed.values, executed.count, file) == executed.count;
    if (!file || fclose(file) || !written) {
        fprintf(stderr, "trace: cannot write %s\n", name);
        abort();
    }
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
