/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What runs in the guests: one server, and the askers. Every asker prints one line of JSON.
 *
 *   serve CPU                            UDP echo and TCP request/response on port 7, TCP sink on port 9; prints "ready"
 *   rr ADDRESS MS CPU                    UDP round trips, one after the other  {"count", "lost", "p50_us", "p99_us", "p999_us"}
 *   first SPACING_MS ADDRESS...          one round trip with each              {"us": [...], "lost"}
 *   crr ADDRESS MS CPU                   connect, request, response, close     {"count", "per_s", "failed"}
 *   stream ADDRESS MS CPU STREAMS        TCP, as much as goes                  {"bytes", "wall_ns"}: acknowledged
 *   flood DEVICE DST_MAC SRC DST MS CPU  64-byte frames by a packet socket     {"sent", "wall_ns", "cpu_ns", "instructions"}
 *   count DEVICE MS                      packets received: now, MS later       {"begin", "end", "wall_ns"}
 */
#include <errno.h>
#include <linux/if_packet.h>
#include <linux/tcp.h>
#include <net/if.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "frame.h"

#define ASK_PORT 7
#define MS 1000000LL
#define MAX_SAMPLES 1000000
#define MAX_STREAMS 64
#define CHUNK (128 << 10)
#define FLOOD_BATCH 64
#define LOST_AFTER_MS 1000

static struct sockaddr_in address(const char *text, int port)
{
	struct sockaddr_in found = {.sin_family = AF_INET, .sin_port = htons(port)};

	if (text && inet_pton(AF_INET, text, &found.sin_addr) != 1) {
		fprintf(stderr, "not an address: %s\n", text);
		exit(2);
	}
	return found;
}

static int socket_at(int type, const char *peer, int port)
{
	struct sockaddr_in at = address(peer, port);
	struct timeval patience = {LOST_AFTER_MS / 1000, LOST_AFTER_MS % 1000 * 1000};
	int one = 1, fd = socket(AF_INET, type, 0);

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (type == SOCK_STREAM)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (peer)
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (peer ? connect(fd, (void *)&at, sizeof(at)) : bind(fd, (void *)&at, sizeof(at))) {
		close(fd);
		return -1;
	}
	if (!peer && type == SOCK_STREAM && listen(fd, 1024))
		die("listen");
	return fd;
}

/* Close with a reset: neither end keeps anything. */
static void drop(int fd)
{
	struct linger now = {1, 0};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(fd);
}

/* serve */

/* From the address that was asked: IP_PKTINFO of the request says which, and goes back with the answer. */
static void *echo(void *unused)
{
	char data[2048], control[CMSG_SPACE(sizeof(struct in_pktinfo))];
	struct sockaddr_in peer;
	struct iovec part = {data, 0};
	struct msghdr message = {.msg_name = &peer, .msg_iov = &part, .msg_iovlen = 1, .msg_control = control};
	int one = 1, fd = socket_at(SOCK_DGRAM, NULL, ASK_PORT);

	setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof(one));
	for (;;) {
		ssize_t got;

		message.msg_namelen = sizeof(peer);
		message.msg_controllen = sizeof(control);
		part.iov_len = sizeof(data);
		got = recvmsg(fd, &message, 0);
		if (got < 0)
			continue;
		part.iov_len = got;
		sendmsg(fd, &message, 0);
	}
	return unused;
}

static void *respond(void *unused)
{
	char byte;
	int fd = socket_at(SOCK_STREAM, NULL, ASK_PORT);

	for (;;) {
		int peer = accept(fd, NULL, NULL);

		if (peer >= 0 && recv(peer, &byte, 1, 0) == 1)
			send(peer, &byte, 1, MSG_NOSIGNAL);
		close(peer);
	}
	return unused;
}

static void *sink_one(void *fd)
{
	char *data = malloc(CHUNK);

	while (recv((long)fd, data, CHUNK, 0) > 0)
		;
	close((long)fd);
	free(data);
	return NULL;
}

static _Noreturn void serve(int cpu)
{
	pthread_t thread;
	int fd;

	pin(cpu);
	fd = socket_at(SOCK_STREAM, NULL, DISCARD_PORT);
	pthread_create(&thread, NULL, echo, NULL);
	pthread_create(&thread, NULL, respond, NULL);
	puts("ready");
	fflush(stdout);
	for (;;) {
		long peer = accept(fd, NULL, NULL);

		if (peer >= 0 && !pthread_create(&thread, NULL, sink_one, (void *)peer))
			pthread_detach(thread);
	}
}

/* rr, first */

static int by_size(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;

	return (x > y) - (x < y);
}

/* One round trip in µs, or -1. */
static float ask(int fd, unsigned int number)
{
	unsigned int answer = ~number;
	long long begin = clock_ns(CLOCK_MONOTONIC);

	send(fd, &number, sizeof(number), 0);
	while (answer != number)
		if (recv(fd, &answer, sizeof(answer), 0) < 0)
			return -1;
	return (clock_ns(CLOCK_MONOTONIC) - begin) / 1e3;
}

static int rr(const char *peer, int ms, int cpu)
{
	float *us = malloc(MAX_SAMPLES * sizeof(*us));
	int fd = socket_at(SOCK_DGRAM, peer, ASK_PORT), n = 0, lost = 0;
	long long end;

	pin(cpu);
	for (int warm = 0; warm < 50; warm++)
		ask(fd, ~warm);
	end = clock_ns(CLOCK_MONOTONIC) + ms * MS;
	for (unsigned int number = 0; n < MAX_SAMPLES && clock_ns(CLOCK_MONOTONIC) < end; number++) {
		us[n] = ask(fd, number);
		if (us[n] < 0)
			lost++;
		else
			n++;
	}
	if (!n) {
		fprintf(stderr, "no answer from %s\n", peer);
		return 1;
	}
	qsort(us, n, sizeof(*us), by_size);
	printf("{\"count\": %d, \"lost\": %d, \"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f}\n", n, lost,
	       us[n / 2], us[(int)(n * 0.99)], us[(int)(n * 0.999)]);
	return 0;
}

static int first(int spacing_ms, int count, char **peers)
{
	int lost = 0, printed = 0;

	printf("{\"us\": [");
	for (int n = 0; n < count; n++) {
		int fd = socket_at(SOCK_DGRAM, peers[n], ASK_PORT);
		float us = ask(fd, n);

		close(fd);
		if (us < 0)
			lost++;
		else
			printf("%s%.1f", printed++ ? ", " : "", us);
		usleep(spacing_ms * 1000);
	}
	printf("], \"lost\": %d}\n", lost);
	return 0;
}

/* crr, stream */

static int crr(const char *peer, int ms, int cpu)
{
	long long begin, end, now;
	int count = 0, failed = 0;
	char byte = 0;

	pin(cpu);
	begin = clock_ns(CLOCK_MONOTONIC);
	end = begin + ms * MS;
	while ((now = clock_ns(CLOCK_MONOTONIC)) < end) {
		int fd = socket_at(SOCK_STREAM, peer, ASK_PORT);

		if (fd >= 0 && send(fd, &byte, 1, MSG_NOSIGNAL) == 1 && recv(fd, &byte, 1, 0) == 1)
			count++;
		else
			failed++;
		if (fd >= 0)
			drop(fd);
	}
	printf("{\"count\": %d, \"per_s\": %.1f, \"failed\": %d}\n", count, count * 1e9 / (now - begin), failed);
	return 0;
}

struct stream {
	int fd;
	long long end;
};

static void *pour(void *argument)
{
	struct stream *stream = argument;
	char *data = calloc(1, CHUNK);

	while (clock_ns(CLOCK_MONOTONIC) < stream->end)
		if (send(stream->fd, data, CHUNK, MSG_NOSIGNAL) < 0)
			break;
	free(data);
	return NULL;
}

static unsigned long long acknowledged(struct stream *streams, int count)
{
	unsigned long long bytes = 0;

	for (int n = 0; n < count; n++) {
		struct tcp_info info = {0};
		socklen_t length = sizeof(info);

		getsockopt(streams[n].fd, IPPROTO_TCP, TCP_INFO, &info, &length);
		bytes += info.tcpi_bytes_acked;
	}
	return bytes;
}

static int stream(const char *peer, int ms, int cpu, int count)
{
	struct stream streams[MAX_STREAMS];
	pthread_t threads[MAX_STREAMS];
	struct timeval patience = {0, 20000};
	long long begin, wall;
	unsigned long long bytes;

	if (count < 1 || count > MAX_STREAMS)
		return 2;
	pin(cpu);
	for (int n = 0; n < count; n++) {
		streams[n].fd = socket_at(SOCK_STREAM, peer, DISCARD_PORT);
		if (streams[n].fd < 0)
			die("connect");
		setsockopt(streams[n].fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	}
	begin = clock_ns(CLOCK_MONOTONIC);
	for (int n = 0; n < count; n++) {
		streams[n].end = begin + ms * MS;
		pthread_create(&threads[n], NULL, pour, &streams[n]);
	}
	usleep(ms * 1000);
	bytes = acknowledged(streams, count);
	wall = clock_ns(CLOCK_MONOTONIC) - begin;
	for (int n = 0; n < count; n++) {
		shutdown(streams[n].fd, SHUT_RDWR);
		pthread_join(threads[n], NULL);
		drop(streams[n].fd);
	}
	printf("{\"bytes\": %llu, \"wall_ns\": %lld}\n", bytes, wall);
	return 0;
}

/* flood */

static int flood(char **argv)
{
	unsigned char frame[FRAME_LEN], *own;
	char mac[32];
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(argv[0])};
	struct iovec part = {frame, FRAME_LEN};
	struct ifreq request = {0};
	struct mmsghdr batch[FLOOD_BATCH] = {0};
	int one = 1, fd = socket(AF_PACKET, SOCK_RAW, 0), counter;
	long long sent = 0, begin, end, now, cpu, instructions;

	strncpy(request.ifr_name, argv[0], sizeof(request.ifr_name) - 1);
	if (fd < 0 || ioctl(fd, SIOCGIFHWADDR, &request))
		die(argv[0]);
	own = (unsigned char *)request.ifr_hwaddr.sa_data;
	snprintf(mac, sizeof(mac), "%02x:%02x:%02x:%02x:%02x:%02x", own[0], own[1], own[2], own[3], own[4], own[5]);
	make_frame(frame, argv[1], mac, argv[2], argv[3]);
	if (bind(fd, (void *)&at, sizeof(at)) || setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)))
		die("packet socket");
	one = 4 << 20;
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &one, sizeof(one));
	for (int n = 0; n < FLOOD_BATCH; n++)
		batch[n].msg_hdr = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1};
	pin(atoi(argv[5]));
	counter = instructions_open();
	instructions = instructions_read(counter);
	begin = clock_ns(CLOCK_MONOTONIC);
	cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
	end = begin + atoi(argv[4]) * MS;
	do {
		int done = sendmmsg(fd, batch, FLOOD_BATCH, 0);

		if (done > 0)
			sent += done;
	} while ((now = clock_ns(CLOCK_MONOTONIC)) < end);
	cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
	if (instructions >= 0)
		instructions = instructions_read(counter) - instructions;
	printf("{\"sent\": %lld, \"wall_ns\": %lld, \"cpu_ns\": %lld, \"instructions\": %lld}\n", sent, now - begin, cpu,
	       instructions);
	return 0;
}

/* count */

static long long received(const char *device)
{
	FILE *file = fopen("/proc/self/net/dev", "r");
	char line[512], name[IFNAMSIZ + 1];
	long long packets;

	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, " %16[^:]: %*d %lld", name, &packets) == 2 && !strcmp(name, device)) {
			fclose(file);
			return packets;
		}
	}
	fprintf(stderr, "no device %s\n", device);
	exit(1);
}

static int count(const char *device, int ms)
{
	long long wall = clock_ns(CLOCK_MONOTONIC), begin = received(device), end;

	usleep(ms * 1000);
	end = received(device);
	printf("{\"begin\": %lld, \"end\": %lld, \"wall_ns\": %lld}\n", begin, end, clock_ns(CLOCK_MONOTONIC) - wall);
	return 0;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(mode, "serve") && argc == 3)
		serve(atoi(argv[2]));
	if (!strcmp(mode, "rr") && argc == 5)
		return rr(argv[2], atoi(argv[3]), atoi(argv[4]));
	if (!strcmp(mode, "first") && argc > 3)
		return first(atoi(argv[2]), argc - 3, argv + 3);
	if (!strcmp(mode, "crr") && argc == 5)
		return crr(argv[2], atoi(argv[3]), atoi(argv[4]));
	if (!strcmp(mode, "stream") && argc == 6)
		return stream(argv[2], atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
	if (!strcmp(mode, "flood") && argc == 8)
		return flood(argv + 2);
	if (!strcmp(mode, "count") && argc == 4)
		return count(argv[2], atoi(argv[3]));
	fprintf(stderr, "usage: traffic serve|rr|first|crr|stream|flood|count ...: see traffic.c\n");
	return 2;
}
