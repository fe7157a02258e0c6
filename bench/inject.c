/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inject OBJECT DEVICE DST_MAC SRC_MAC SRC DST COUNT CPU PPS SPREAD
 *
 * Gives COUNT frames to the kernel as received by DEVICE (a guest's port), by BPF_PROG_TEST_RUN with live frames: no
 * system call, no sk_buff of a sender's, no copy. The whole way to the last interface on this machine runs in this
 * thread, in batches of 64 as with NAPI or vhost. PPS 0: as fast as possible, undisturbed; else paced, one batch of 16
 * at a time, for contenders that forward in another process. SPREAD > 0: to as many destinations; DST is then the
 * address of their first subnet.
 *
 * Prints {"sent": n, "cpu_ns": of this thread, "wall_ns": n, "instructions": n or -1}.
 */
#include <linux/bpf.h>
#include <net/if.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "frame.h"

#define BATCH 64
#define PACED_BATCH 16

/* As in programs.c. */
struct plan {
	unsigned char headers[44];
	unsigned int spread, first, sum, at;
};

static int load(const char *path, const struct plan *plan)
{
	struct bpf_object *object = bpf_object__open(path);
	struct bpf_program *program;
	struct bpf_map *map;

	if (!object)
		die(path);
	bpf_object__for_each_program(program, object)
		bpf_program__set_autoload(program, !strcmp(bpf_program__name(program), "generate"));
	program = bpf_object__find_program_by_name(object, "generate");
	map = bpf_object__next_map(object, NULL);
	if (!program || !map)
		die("no program `generate` with its data");
	bpf_program__set_type(program, BPF_PROG_TYPE_XDP);
	if (bpf_map__set_initial_value(map, plan, sizeof(*plan)))
		die("plan");
	if (bpf_object__load(object))
		die("bpf_object__load");
	return bpf_program__fd(program);
}

int main(int argc, char **argv)
{
	unsigned char frame[FRAME_LEN];
	struct plan plan = {};
	int program, error, counter;
	long long count, pps, sent = 0, cpu, wall, instructions;

	if (argc != 11) {
		fprintf(stderr, "usage: inject OBJECT DEVICE DST_MAC SRC_MAC SRC DST COUNT CPU PPS SPREAD\n");
		return 2;
	}
	make_frame(frame, argv[3], argv[4], argv[5], argv[6]);
	count = atoll(argv[7]);
	pps = atoll(argv[9]);
	memcpy(plan.headers, frame, sizeof(plan.headers));
	plan.spread = atoi(argv[10]);
	plan.first = frame[30] << 24 | frame[31] << 16 | frame[32] << 8 | frame[33];
	for (int at = 14; at < 30; at += 2)
		plan.sum += at == 24 ? 0 : frame[at] << 8 | frame[at + 1];
	program = load(argv[1], &plan);
	pin(atoi(argv[8]));
	if (!pps)
		undisturbed();

	struct xdp_md ctx = {.data_end = FRAME_LEN, .ingress_ifindex = if_nametoindex(argv[2])};
	LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = frame, .data_size_in = FRAME_LEN, .ctx_in = &ctx,
		    .ctx_size_in = sizeof(ctx), .repeat = pps ? PACED_BATCH : count,
		    .flags = BPF_F_TEST_XDP_LIVE_FRAMES, .batch_size = pps ? PACED_BATCH : BATCH);

	counter = instructions_open();
	instructions = instructions_read(counter);
	wall = clock_ns(CLOCK_MONOTONIC);
	cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
	while (sent < count) {
		error = bpf_prog_test_run_opts(program, &run);
		if (error)
			die("bpf_prog_test_run");
		sent += run.repeat;
		if (pps) {
			long long due = wall + sent * 1000000000LL / pps;
			struct timespec until = {due / 1000000000LL, due % 1000000000LL};

			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
		}
	}
	cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
	wall = clock_ns(CLOCK_MONOTONIC) - wall;
	if (instructions >= 0)
		instructions = instructions_read(counter) - instructions;
	printf("{\"sent\": %lld, \"cpu_ns\": %lld, \"wall_ns\": %lld, \"instructions\": %lld}\n", sent, cpu, wall,
	       instructions);
	return 0;
}
