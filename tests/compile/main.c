/* Calls the property under test; each of the other files defines moe_ep_test(). */
extern int moe_ep_test(void);
int main(void) { return moe_ep_test() ? 0 : 1; }
