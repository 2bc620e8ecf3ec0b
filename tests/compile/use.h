/* One call that needs a body, one type, one macro: enough to prove that the header is usable here. */
#ifdef __cplusplus
extern "C"
#endif
int moe_ep_test(void);
int moe_ep_test(void)
{
    moe_ep_rng rng = moe_ep_rng_seed(1);
    return moe_ep_rng_below(&rng, 6) == 1 && moe_ep_status_str(MOE_EP_OK)[0] == 'o' &&
           moe_ep_version()[0] == MOE_EP_VERSION_STRING[0];
}
