use crate::given::*;

async fn wrong(sagas: &Sagas, saga: &Saga<Order>) {
    let _ = sagas.start(unreachable!(), saga, SagaId::mint(), &Invoice {}).await;
}
