/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two generators share: the 64-byte frame (60 and the FCS), clocks, CPU pinning, instruction counting.
 *
 *      0        6        12   14            34       42              60
 *     +--------+--------+----+-------------+--------+---------------+
 *     | dst    | src    |0800| IPv4, TTL 64| UDP 9:9| 18 zero bytes |
 *     +--------+--------+----+-------------+--------+---------------+
 */
#pragma once

#include <arpa/inet.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define FRAME_LEN 60
#define DISCARD_PORT 9

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static inline long long clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* cpu < 0: anywhere. */
static inline void pin(int cpu)
{
	cpu_set_t set;

	if (cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

/* Real-time priority: no other process, and no ksoftirqd, takes part of what is measured. Bursts are short. */
static inline void undisturbed(void)
{
	struct sched_param priority = {.sched_priority = 1};

	if (sched_setscheduler(0, SCHED_FIFO, &priority))
		die("sched_setscheduler");
}

/* Instructions of the calling thread from now on, softirqs in it included; -1 where the machine counts none. */
static inline int instructions_open(void)
{
	struct perf_event_attr attr = {
		.size = sizeof(attr),
		.type = PERF_TYPE_HARDWARE,
		.config = PERF_COUNT_HW_INSTRUCTIONS,
		.exclude_hv = 1,
	};

	return syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
}

static inline long long instructions_read(int fd)
{
	long long count;

	return fd >= 0 && read(fd, &count, sizeof(count)) == sizeof(count) ? count : -1;
}

static inline void parse_mac(const char *text, unsigned char *mac)
{
	if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) != 6) {
		fprintf(stderr, "not a MAC: %s\n", text);
		exit(2);
	}
}

static inline void make_frame(unsigned char *frame, const char *dst_mac, const char *src_mac, const char *src,
			      const char *dst)
{
	unsigned int sum = 0;

	memset(frame, 0, FRAME_LEN);
	parse_mac(dst_mac, frame);
	parse_mac(src_mac, frame + 6);
	frame[12] = 0x08;
	frame[14] = 0x45;
	frame[17] = FRAME_LEN - 14;
	frame[22] = 64;
	frame[23] = IPPROTO_UDP;
	if (inet_pton(AF_INET, src, frame + 26) != 1 || inet_pton(AF_INET, dst, frame + 30) != 1) {
		fprintf(stderr, "not an address: %s or %s\n", src, dst);
		exit(2);
	}
	for (int at = 14; at < 34; at += 2)
		sum += frame[at] << 8 | frame[at + 1];
	sum = (sum >> 16) + (sum & 0xffff);
	sum = ~(sum + (sum >> 16));
	frame[24] = sum >> 8;
	frame[25] = sum;
	frame[35] = frame[37] = DISCARD_PORT;
	frame[39] = FRAME_LEN - 34;
}
