// SPDX-License-Identifier: Apache-2.0
/*
 * Datagrams with sequence numbers, out and back, for guests of the lab: what was lost, twice, out of order, and how long
 * nothing came.
 *
 *   sequence echo PORT                            answers each datagram, for ever
 *   sequence send ADDRESS PORT COUNT INTERVAL_US  prints: sent received duplicated reordered longest_gap_us
 */
#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define RECEIVE_BUFFER (4 << 20)
#define LAST_WAIT_US 3000000

static int64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static int open_socket(void)
{
	int size = RECEIVE_BUFFER, s = socket(AF_INET, SOCK_DGRAM, 0);

	setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	setsockopt(s, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
	return s;
}

static int echo(int port)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)}, from;
	int s = open_socket();
	char data[2048];

	if (bind(s, (void *)&here, sizeof(here)))
		return 1;
	for (;;) {
		socklen_t length = sizeof(from);
		ssize_t got = recvfrom(s, data, sizeof(data), 0, (void *)&from, &length);

		if (got > 0)
			sendto(s, data, got, 0, (void *)&from, length);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in there = {.sin_family = AF_INET};
	uint32_t count, next = 0, received = 0, twice = 0, reordered = 0, highest = 0;
	int64_t interval, due, last = 0, gap = 0, end;
	uint8_t *seen;
	int s;

	if (argc == 3 && !strcmp(argv[1], "echo"))
		return echo(atoi(argv[2]));
	if (argc != 6)
		return 2;
	inet_pton(AF_INET, argv[2], &there.sin_addr);
	there.sin_port = htons(atoi(argv[3]));
	count = atoi(argv[4]);
	interval = atoi(argv[5]);
	seen = calloc(count, 1);
	s = open_socket();
	connect(s, (void *)&there, sizeof(there));
	due = now_us();
	end = due + count * interval + LAST_WAIT_US;
	while (received < count && now_us() < end) {
		struct pollfd ready = {.fd = s, .events = POLLIN};
		int64_t now = now_us();
		uint32_t number;

		while (next < count && due <= now) {
			number = htonl(next++);
			send(s, &number, sizeof(number), 0);
			due += interval;
		}
		poll(&ready, 1, next < count && due - now < 1000 ? 0 : 1);
		while (recv(s, &number, sizeof(number), MSG_DONTWAIT) == sizeof(number)) {
			number = ntohl(number);
			if (number >= count)
				continue;
			now = now_us();
			if (last && now - last > gap)
				gap = now - last;
			last = now;
			if (seen[number]++) {
				twice++;
				continue;
			}
			received++;
			if (number < highest)
				reordered++;
			else
				highest = number;
		}
	}
	printf("%u %u %u %u %lld\n", next, received, twice, reordered, (long long)gap);
	return 0;
}
