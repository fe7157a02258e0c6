/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Both ends of what a moving guest and its clients say to each other. Static: it runs in the lab's guests.
 *
 *   talk udp PER_SECOND DEV,PORT,ADDRESS,PORT …    numbered datagrams to each address, and those that come from there;
 *                                                  SIGUSR1 begins and ends the sending, SIGTERM ends and prints JSON
 *   talk serve PORT                                TCP: sends back what it gets
 *   talk session DEV ADDRESS PORT MS FILE          TCP: numbered lines of 64 bytes every MS, each to be sent back;
 *                                                  FILE has what came of it, rewritten every 200 ms
 *
 * DEV: the NIC that a socket is bound to, or "-". A datagram: u32 number, filled up with zeros. Arrivals have the time
 * at which the kernel took the frame from the NIC: a process that waits for the processor makes no gap.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FLOWS 16
#define NUMBERS (1u << 20)
#define LENGTH 64
#define BURST 32

static volatile sig_atomic_t ended, toggles;

static void on_end(int number)
{
	(void)number;
	ended = 1;
}

static void on_toggle(int number)
{
	(void)number;
	toggles++;
}

static uint64_t now_us(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * 1000000ull + time.tv_nsec / 1000;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int bound(int type, const char *device, int port)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, type, 0), one = 1, size = 16 << 20;

	if (fd < 0)
		fail("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	if (type == SOCK_DGRAM) {
		setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof(one));
		setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &one, sizeof(one));
	}
	if (strcmp(device, "-") && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, strlen(device)))
		fail(device);
	if (bind(fd, (struct sockaddr *)&here, sizeof(here)))
		fail("bind");
	return fd;
}

struct flow {
	int fd;
	struct sockaddr_in to;
	uint32_t sent, refused, received, doubled, reordered, overflowed, highest;
	uint64_t *arrived_us; /* by number; 0: not */
};

static void take(struct flow *flow, uint32_t number, uint64_t at_us)
{
	if (number >= NUMBERS)
		return;
	if (flow->arrived_us[number]) {
		flow->doubled++;
		return;
	}
	flow->arrived_us[number] = at_us;
	if (flow->received++ && number < flow->highest)
		flow->reordered++;
	if (number > flow->highest)
		flow->highest = number;
}

static void receive(struct flow *flow)
{
	char body[2048], control[128];
	struct iovec part = {body, sizeof(body)};

	for (;;) {
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
					 .msg_controllen = sizeof(control)};
		ssize_t length = recvmsg(flow->fd, &message, MSG_DONTWAIT);
		uint64_t at_us = now_us(CLOCK_REALTIME);
		uint32_t number;

		if (length < 0 && errno != EAGAIN && errno != EINTR)
			continue; /* an ICMP error */
		if (length < 0)
			return;
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
			struct timespec time;

			if (c->cmsg_type == SO_RXQ_OVFL)
				memcpy(&flow->overflowed, CMSG_DATA(c), sizeof(flow->overflowed));
			if (c->cmsg_type == SCM_TIMESTAMPNS) {
				memcpy(&time, CMSG_DATA(c), sizeof(time));
				at_us = time.tv_sec * 1000000ull + time.tv_nsec / 1000;
			}
		}
		if (length == LENGTH) {
			memcpy(&number, body, sizeof(number));
			take(flow, ntohl(number), at_us);
		}
	}
}

static void send_due(struct flow *flow, uint64_t due)
{
	char body[LENGTH] = {0};

	for (int n = 0; n < BURST && flow->sent < due && flow->sent < NUMBERS; n++) {
		uint32_t number = htonl(flow->sent);

		memcpy(body, &number, sizeof(number));
		if (sendto(flow->fd, body, LENGTH, MSG_DONTWAIT, (struct sockaddr *)&flow->to, sizeof(flow->to)) < 0) {
			flow->refused++; /* the same number is tried again */
			return;
		}
		flow->sent++;
	}
}

static void report(const struct flow *flows, int count)
{
	printf("[");
	for (int i = 0; i < count; i++) {
		const struct flow *flow = &flows[i];
		uint64_t last = 0;

		printf("%s{\"sent\": %u, \"refused\": %u, \"received\": %u, \"doubled\": %u, \"reordered\": %u, "
		       "\"overflowed\": %u, \"arrived_us\": [", i ? ", " : "", flow->sent, flow->refused, flow->received,
		       flow->doubled, flow->reordered, flow->overflowed);
		/* each as the difference to the one before; null: did not arrive */
		for (uint32_t n = 0; flow->received && n <= flow->highest; n++) {
			if (flow->arrived_us[n])
				printf("%s%lld", n ? "," : "", (long long)(flow->arrived_us[n] - last));
			else
				printf("%snull", n ? "," : "");
			last = flow->arrived_us[n] ? flow->arrived_us[n] : last;
		}
		printf("]}");
	}
	printf("]\n");
}

static int udp(double per_second, int count, char **specs)
{
	static struct flow flows[FLOWS];
	struct pollfd polls[FLOWS];
	uint64_t begin_us = 0;

	for (int i = 0; i < count; i++) {
		struct flow *flow = &flows[i];
		char device[32], address[32];
		int here, there;

		if (sscanf(specs[i], "%31[^,],%d,%31[^,],%d", device, &here, address, &there) != 4)
			return 2;
		flow->fd = bound(SOCK_DGRAM, device, here);
		flow->to = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(there)};
		inet_pton(AF_INET, address, &flow->to.sin_addr);
		flow->arrived_us = calloc(NUMBERS, sizeof(*flow->arrived_us));
		polls[i] = (struct pollfd){flow->fd, POLLIN, 0};
	}
	while (!ended) {
		if (toggles == 1) {
			uint64_t time_us = now_us(CLOCK_MONOTONIC);

			begin_us = begin_us ? begin_us : time_us;
			for (int i = 0; i < count; i++)
				send_due(&flows[i], (time_us - begin_us) * per_second / 1e6);
		}
		poll(polls, count, 1);
		for (int i = 0; i < count; i++)
			receive(&flows[i]);
	}
	report(flows, count);
	return 0;
}

static int serve(int port)
{
	int listener = bound(SOCK_STREAM, "-", port);

	signal(SIGCHLD, SIG_IGN);
	if (listen(listener, 16))
		fail("listen");
	for (;;) {
		char data[4096];
		ssize_t length;
		int fd = accept(listener, NULL, NULL), one = 1;

		if (fd < 0 || fork()) {
			close(fd);
			continue;
		}
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		while ((length = read(fd, data, sizeof(data))) > 0)
			if (write(fd, data, length) != length)
				break;
		exit(0);
	}
}

static void publish(const char *file, uint32_t sent, uint32_t answered, uint64_t stall_us, const char *state)
{
	char part[256];
	FILE *out;

	snprintf(part, sizeof(part), "%s.part", file);
	out = fopen(part, "w");
	if (!out)
		return;
	fprintf(out, "{\"sent\": %u, \"answered\": %u, \"stall_us\": %llu, \"state\": \"%s\"}\n", sent, answered,
		(unsigned long long)stall_us, state);
	fclose(out);
	rename(part, file);
}

/* SIGUSR1 forgets the longest stall. */
static int session(const char *device, const char *address, int port, int interval_ms, const char *file)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = bound(SOCK_STREAM, device, 0), one = 1, seen = 0;
	uint32_t sent = 0, answered = 0;
	uint64_t stall_us = 0, last_us, next_us, publish_us = 0;
	size_t held = 0;
	char line[LENGTH], expected[LENGTH];
	const char *state = "open";

	inet_pton(AF_INET, address, &to.sin_addr);
	if (connect(fd, (struct sockaddr *)&to, sizeof(to))) {
		publish(file, 0, 0, 0, strerror(errno));
		return 1;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	fcntl(fd, F_SETFL, O_NONBLOCK);
	last_us = next_us = now_us(CLOCK_MONOTONIC);
	while (!ended && !strcmp(state, "open")) {
		struct pollfd poller = {fd, POLLIN, 0};
		uint64_t time_us = now_us(CLOCK_MONOTONIC);
		ssize_t length;

		if (toggles != seen) {
			seen = toggles;
			stall_us = 0;
			last_us = time_us;
		}
		if (time_us >= next_us) {
			memset(line, '.', sizeof(line));
			snprintf(line, sizeof(line), "%u", sent);
			if (write(fd, line, sizeof(line)) == sizeof(line))
				sent++;
			else if (errno != EAGAIN)
				state = strerror(errno);
			next_us += interval_ms * 1000;
		}
		poll(&poller, 1, 1);
		while ((length = read(fd, line + 0, sizeof(line) - held)) > 0) {
			memset(expected, '.', sizeof(expected));
			snprintf(expected, sizeof(expected), "%u", answered);
			if (memcmp(line, expected + held, length))
				state = "garbled";
			held += length;
			if (held < sizeof(line))
				continue;
			held = 0;
			answered++;
			time_us = now_us(CLOCK_MONOTONIC);
			stall_us = time_us - last_us > stall_us ? time_us - last_us : stall_us;
			last_us = time_us;
		}
		if (!length)
			state = "closed by the peer";
		else if (length < 0 && errno != EAGAIN)
			state = strerror(errno);
		if (time_us >= publish_us) {
			uint64_t now = time_us - last_us;

			publish(file, sent, answered, now > stall_us ? now : stall_us, state);
			publish_us = time_us + 200000;
		}
	}
	publish(file, sent, answered, stall_us, strcmp(state, "open") ? state : "ended");
	return strcmp(state, "open") ? 1 : 0;
}

int main(int argc, char **argv)
{
	struct sigaction end = {.sa_handler = on_end}, toggle = {.sa_handler = on_toggle};

	sigaction(SIGTERM, &end, NULL);
	sigaction(SIGUSR1, &toggle, NULL);
	signal(SIGPIPE, SIG_IGN);
	if (argc >= 4 && argc - 3 <= FLOWS && !strcmp(argv[1], "udp"))
		return udp(atof(argv[2]), argc - 3, argv + 3);
	if (argc == 3 && !strcmp(argv[1], "serve"))
		return serve(atoi(argv[2]));
	if (argc == 7 && !strcmp(argv[1], "session"))
		return session(argv[2], argv[3], atoi(argv[4]), atoi(argv[5]), argv[6]);
	fprintf(stderr, "usage: talk udp PER_SECOND DEV,PORT,ADDRESS,PORT ... | talk serve PORT | "
			"talk session DEV ADDRESS PORT MS FILE\n");
	return 2;
}
