//! The codec between tonic and the generated messages, which keep fields they do not know.

use buffa::Message;
use bytes::BufMut;
use std::marker::PhantomData;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Encodes `T`, decodes `U`.
pub(crate) struct BuffaCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BuffaCodec<T, U> {
    fn default() -> Self {
        BuffaCodec(PhantomData)
    }
}

impl<T, U> Codec for BuffaCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Writer<T>;
    type Decoder = Reader<U>;

    fn encoder(&mut self) -> Writer<T> {
        Writer(PhantomData)
    }
    fn decoder(&mut self) -> Reader<U> {
        Reader(PhantomData)
    }
}

pub(crate) struct Writer<T>(PhantomData<T>);

impl<T: Message> Encoder for Writer<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&message.encode_to_vec());
        Ok(())
    }
}

pub(crate) struct Reader<T>(PhantomData<T>);

impl<T: Message + Default> Decoder for Reader<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        T::decode(buffer).map(Some).map_err(|error| Status::invalid_argument(format!("the message is not well-formed: {error}")))
    }
}
