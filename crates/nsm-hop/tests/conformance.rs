//! The fake kernel passes the suite that the real one passes.

use nsm_hop::testing::{FakeKernel, Fault, FaultPlan, When, conformance};

#[tokio::test]
async fn the_fake_kernel_conforms() {
    let fake = FakeKernel::default();
    conformance(&fake, &fake).await;
}

#[tokio::test]
async fn a_fault_plan_fails_the_chosen_call_on_the_chosen_side() {
    let plan = FaultPlan::new([Fault { at: 2, when: When::Before }, Fault { at: 3, when: When::After }]);
    let mut effects = 0;
    let mut failed = vec![];
    for call in 1..=4 {
        let effect = || {
            effects += 1;
            Ok(())
        };
        if plan.act(effect).await.is_err() {
            failed.push(call);
        }
    }
    assert_eq!((effects, failed, plan.calls()), (3, vec![2, 3], 4));
}
