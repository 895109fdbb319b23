"""What is read off the text of compiled programs."""

from styledrop_jax.planning import hlo


def test_what_chips_send_is_counted_once():
    """Written as the TPU's compiler does: a gather in two parts, a reduction that scatters."""
    program = """
%fused.1 (p: bf16[2,8]) -> bf16[8,8] {
  %all-gather.1 = bf16[8,8]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=4, dimensions={0}
}
%fused.2 (p: bf16[2,8]) -> bf16[8,8] {
  %all-gather.2 = bf16[8,8]{1,0:T(8,128)} all-gather(%p), channel_id=4, dimensions={0}
}
%all-reduce-scatter.1 (p: f32[8,8]) -> f32[2,8] {
  %all-reduce.9 = f32[8,8]{1,0} all-reduce(%p), channel_id=9, to_apply=%add
}
ENTRY %main (p: f32[8,8]) -> f32[8] {
  %all-reduce = (f32[3]{0}, pred[5]{0}) all-reduce(%a, %b), channel_id=2, to_apply=%add
  %permute = (u8[6]{0}, u8[6]{0}) collective-permute-start(%c), channel_id=1
}
"""
    assert hlo.sent(program) == {
        "all-gather": 128,
        "all-reduce": 17,
        "collective-permute": 6,
        "reduce-scatter": 256,
    }


def test_a_tpus_main_memory_moves_what_is_not_on_the_chip():
    """S(1) is the fast memory; a loop counts once, of a choice the dearest branch."""
    program = """
%part (whole: f32[8,1024], at: s32[]) -> f32[1024] {
  %whole = f32[8,1024]{1,0:T(8,128)} parameter(0)
  %at = s32[] parameter(1)
  ROOT %row = f32[1024]{0:T(1024)} dynamic-slice(%whole, %at), dynamic_slice_sizes={1,1024}
}
%put (whole: f32[8,1024], row: f32[1,1024], at: s32[]) -> f32[8,1024] {
  %whole = f32[8,1024]{1,0:T(8,128)} parameter(0)
  %row = f32[1,1024]{1,0:T(8,128)S(1)} parameter(1)
  %at = s32[] parameter(2)
  ROOT %new = f32[8,1024]{1,0:T(8,128)} dynamic-update-slice(%whole, %row, %at)
}
%small (x: f32[4]) -> f32[4] {
  ROOT %copy.1 = f32[4]{0} copy(%x)
}
%large (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %twice = (f32[4]{0}, f32[100]{0}) custom-call(%x), custom_call_target="kernel"
  ROOT %first = f32[4]{0} get-tuple-element(%twice), index=0
}
%body (state: (f32[8,1024], s32[])) -> (f32[8,1024], s32[]) {
  %state = (f32[8,1024]{1,0:T(8,128)}, s32[]{:S(2)}) parameter(0)
  %all = f32[8,1024]{1,0:T(8,128)} get-tuple-element(%state), index=0
  %step = s32[]{:S(2)} get-tuple-element(%state), index=1
  %rows = ((f32[8,1024]{1,0:T(8,128)}), f32[2,1024]{1,0:T(8,128)S(1)}, s32[]) async-start(%all)
  %there = f32[2,1024]{1,0:T(8,128)S(1)} async-done(%rows)
  %same = ((f32[8,1024]{1,0:T(8,128)}), f32[2,1024]{1,0:T(8,128)S(1)}, s32[]) slice-start(%all)
  %near = f32[2,1024]{1,0:T(8,128)S(1)} fusion(%there), kind=kLoop, calls=%unseen
  %row = f32[1024]{0:T(1024)S(1)} fusion(%all, %step), kind=kLoop, calls=%part
  %kept = f32[8,1024]{1,0:T(8,128)} fusion(%all, %row, %step), kind=kLoop, calls=%put
  ROOT %next = (f32[8,1024]{1,0:T(8,128)}, s32[]{:S(2)}) tuple(%kept, %step)
}
%unseen (x: f32[2,1024]) -> f32[2,1024] {
  ROOT %x = f32[2,1024]{1,0} parameter(0)
}
%always (state: (f32[8,1024], s32[])) -> pred[] {
  ROOT %yes = pred[]{:S(2)} constant(true)
}
ENTRY %main (p: f32[8,1024], x: f32[4]) -> f32[8,1024] {
  %p = f32[8,1024]{1,0:T(8,128)} parameter(0)
  %x = f32[4]{0} parameter(1)
  %zero = s32[]{:S(2)} constant(0)
  %start = (f32[8,1024]{1,0:T(8,128)}, s32[]{:S(2)}) tuple(%p, %zero)
  %loop = (f32[8,1024]{1,0:T(8,128)}, s32[]{:S(2)}) while(%start), condition=%always, body=%body
  %chosen = f32[4]{0} conditional(%zero, %x, %x), branch_computations={%small, %large}
  ROOT %out = f32[8,1024]{1,0:T(8,128)} copy(%p)
}
"""
    fetched, row, put = 2 * 2 * 1024 * 4, 1024 * 4, 1024 * 4
    branch = 4 * 4 + 4 * 4 + 100 * 4
    copied = 2 * 8 * 1024 * 4
    assert hlo.moved(program) == fetched + row + put + branch + copied
