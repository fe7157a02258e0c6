/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Both ends of what a moving guest and its clients say to each other. Static: it runs in the lab's guests.
 *
 *   talk udp PER_SECOND DEV,PORT,ADDRESS,PORT …    numbered datagrams to each address, and those that come from there;
 *                                                  SIGUSR1 begins and ends the sending, SIGTERM ends and prints JSON
 *   talk serve PORT TICK_MS                        TCP: answers each line with the number and checksum of all that it
 *                                                  has had in this session, and says so unasked every TICK_MS
 *   talk session DEV ADDRESS PORT MS FILE          TCP: numbered lines of 64 bytes every MS; FILE has what came of it,
 *                                                  rewritten every 200 ms; "garbled": a byte lost, doubled, or another
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

/* A session like a shell's: lines both ways, each side's in order, and a state that both keep. */

#define FNV_START 14695981039346656037ull
#define FNV_PRIME 1099511628211ull

static uint64_t checksum(uint64_t sum, const char *data, size_t length)
{
	for (size_t i = 0; i < length; i++)
		sum = (sum ^ (uint8_t)data[i]) * FNV_PRIME;
	return sum;
}

static void write_line(char line[LENGTH], char kind, uint32_t number, uint64_t sum)
{
	memset(line, '.', LENGTH);
	snprintf(line, LENGTH, "%c %u %016llx", kind, number, (unsigned long long)sum);
}

/* The server's end of one session. It answers each line with how many and which it has had, and ticks unasked. */
static int serve_session(int fd, int tick_ms)
{
	uint64_t sum = FNV_START, tick_us = now_us(CLOCK_MONOTONIC);
	uint32_t lines = 0, ticks = 0;
	char line[LENGTH], answer[LENGTH];
	size_t held = 0;

	for (;;) {
		struct pollfd poller = {fd, POLLIN, 0};
		uint64_t time_us = now_us(CLOCK_MONOTONIC);
		ssize_t length;

		if (time_us >= tick_us) {
			write_line(answer, 'T', ticks++, sum);
			if (write(fd, answer, LENGTH) != LENGTH)
				return 1;
			tick_us = time_us + tick_ms * 1000;
		}
		if (poll(&poller, 1, tick_ms) <= 0)
			continue;
		length = read(fd, line + held, LENGTH - held);
		if (length <= 0)
			return 0;
		held += length;
		if (held < LENGTH)
			continue;
		held = 0;
		sum = checksum(sum, line, LENGTH);
		write_line(answer, 'A', lines++, sum);
		if (write(fd, answer, LENGTH) != LENGTH)
			return 1;
	}
}

static int serve(int port, int tick_ms)
{
	int listener = bound(SOCK_STREAM, "-", port);

	signal(SIGCHLD, SIG_IGN);
	if (listen(listener, 16))
		fail("listen");
	for (;;) {
		int fd = accept(listener, NULL, NULL), one = 1;

		if (fd < 0 || fork()) {
			close(fd);
			continue;
		}
		close(listener);
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		exit(serve_session(fd, tick_ms));
	}
}

struct session {
	int fd;
	uint32_t sent, answered, ticks;
	uint64_t stall_us, last_us, sum; /* sum: of the lines that are answered */
	size_t held;
	char line[LENGTH];
	const char *state;
};

static void publish(const char *file, const struct session *session, uint64_t stall_us)
{
	struct tcp_info info = {0};
	socklen_t length = sizeof(info);
	char part[256];
	FILE *out;

	getsockopt(session->fd, IPPROTO_TCP, TCP_INFO, &info, &length);
	snprintf(part, sizeof(part), "%s.part", file);
	out = fopen(part, "w");
	if (!out)
		return;
	fprintf(out, "{\"sent\": %u, \"answered\": %u, \"ticks\": %u, \"resent\": %u, \"stall_us\": %llu, \"state\": \"%s\"}\n",
		session->sent, session->answered, session->ticks, info.tcpi_total_retrans, (unsigned long long)stall_us,
		session->state);
	fclose(out);
	rename(part, file);
}

/* A whole line of the server's: a byte that is lost, doubled or another shows, here or in the sum. */
static void take_line(struct session *session)
{
	char line[LENGTH], expected[LENGTH];
	uint64_t time_us = now_us(CLOCK_MONOTONIC);

	if (session->line[0] == 'T') {
		write_line(expected, 'T', session->ticks++, session->sum);
	} else {
		write_line(line, 'L', session->answered, 0);
		session->sum = checksum(session->sum, line, LENGTH);
		write_line(expected, 'A', session->answered++, session->sum);
		if (time_us - session->last_us > session->stall_us)
			session->stall_us = time_us - session->last_us;
		session->last_us = time_us;
	}
	if (memcmp(session->line, expected, LENGTH))
		session->state = "garbled";
}

static void session_read(struct session *session)
{
	ssize_t length;

	while ((length = read(session->fd, session->line + session->held, LENGTH - session->held)) > 0) {
		session->held += length;
		if (session->held < LENGTH)
			continue;
		session->held = 0;
		take_line(session);
	}
	if (!length)
		session->state = "closed by the peer";
	else if (errno != EAGAIN)
		session->state = strerror(errno);
}

/* SIGUSR1 forgets the longest stall. */
static int session(const char *device, const char *address, int port, int interval_ms, const char *file)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct session here = {.fd = bound(SOCK_STREAM, device, 0), .state = "connecting", .sum = FNV_START};
	uint64_t next_us, due_us, publish_us = 0;
	int one = 1, seen = 0, size = 16 << 10;
	char line[LENGTH];
	size_t written = 0;

	inet_pton(AF_INET, address, &to.sin_addr);
	setsockopt(here.fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	publish(file, &here, 0);
	if (connect(here.fd, (struct sockaddr *)&to, sizeof(to))) {
		here.state = strerror(errno);
		publish(file, &here, 0);
		return 1;
	}
	setsockopt(here.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	fcntl(here.fd, F_SETFL, O_NONBLOCK);
	here.state = "open";
	here.last_us = next_us = now_us(CLOCK_MONOTONIC);
	while (!ended && !strcmp(here.state, "open")) {
		struct pollfd poller = {here.fd, POLLIN, 0};
		uint64_t time_us = now_us(CLOCK_MONOTONIC);

		if (toggles != seen) {
			seen = toggles;
			here.stall_us = 0;
			here.last_us = time_us;
		}
		if (time_us >= next_us) {
			size_t rest; /* of a line: a full buffer may have taken the first part only */
			ssize_t taken;

			write_line(line, 'L', here.sent, 0);
			rest = LENGTH - written;
			taken = write(here.fd, line + written, rest);
			if (taken < 0 && errno != EAGAIN)
				here.state = strerror(errno);
			written = taken > 0 ? (written + taken) % LENGTH : written;
			here.sent += taken == (ssize_t)rest;
			next_us += interval_ms * 1000;
		}
		due_us = next_us < publish_us ? next_us : publish_us;
		poll(&poller, 1, due_us > time_us ? (due_us - time_us) / 1000 + 1 : 1);
		session_read(&here);
		if (time_us >= publish_us) {
			uint64_t now = time_us > here.last_us ? time_us - here.last_us : 0;

			publish(file, &here, now > here.stall_us ? now : here.stall_us);
			publish_us = time_us + 200000;
		}
	}
	if (!strcmp(here.state, "open"))
		here.state = "ended";
	publish(file, &here, here.stall_us);
	return strcmp(here.state, "ended") ? 1 : 0;
}

int main(int argc, char **argv)
{
	struct sigaction end = {.sa_handler = on_end}, toggle = {.sa_handler = on_toggle};

	sigaction(SIGTERM, &end, NULL);
	sigaction(SIGUSR1, &toggle, NULL);
	signal(SIGPIPE, SIG_IGN);
	if (argc >= 4 && argc - 3 <= FLOWS && !strcmp(argv[1], "udp"))
		return udp(atof(argv[2]), argc - 3, argv + 3);
	if (argc == 4 && !strcmp(argv[1], "serve"))
		return serve(atoi(argv[2]), atoi(argv[3]));
	if (argc == 7 && !strcmp(argv[1], "session"))
		return session(argv[2], argv[3], atoi(argv[4]), atoi(argv[5]), argv[6]);
	fprintf(stderr, "usage: talk udp PER_SECOND DEV,PORT,ADDRESS,PORT ... | talk serve PORT TICK_MS | "
			"talk session DEV ADDRESS PORT MS FILE\n");
	return 2;
}
