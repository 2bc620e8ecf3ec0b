/* Short names that programs like to define; the header must neither trip over them nor take them away. */
#define A 1
#define B 2
#define C 3
#define D 4
#define E 64
#define F 6
#define G 7
#define H 8
#define I 9
#define J 10
#define K 11
#define L 12
#define M 13
#define N 14
#define O 15
#define P 16
#define Q 17
#define R 18
#define S 19
#define T 20
#define U 21
#define V 22
#define W 23
#define X 24
#define Y 25
#define Z 26
#define min(a, b) ((a) < (b) ? (a) : (b))
#define max(a, b) ((a) > (b) ? (a) : (b))
#define small char
#define near
#define far
#ifdef HOSTILE_IMPLEMENTATION
#  define MOE_EP_IMPLEMENTATION
#endif
#include "moe_ep.h"
typedef char moe_ep_test_still_there[A + B + C + D + E + F + G + H + I + J + K + L + M == 150 ? 1 : -1];
typedef char moe_ep_test_these_too[N + O + P + Q + R + S + T + U + V + W + X + Y + Z == 260 ? 1 : -1];
#include "use.h"
