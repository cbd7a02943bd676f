//! `MPSMatrixDescriptor`, `MPSMatrix`, `MPSVectorDescriptor` and `MPSVector`.

use objc2::rc::{Allocated, Retained};
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::NSObject;
use objc2_metal_performance_shaders::MPSDataType;
use softmetal_formulas::element::Element;
use softmetal_formulas::matrix::{Matrix, MatrixDescriptor, recommended_row_bytes};
use softmetal_formulas::rules::{Refusal, refuse};
use softmetal_formulas::vector::{Vector, VectorDescriptor, recommended_vector_bytes};

use super::accepted;
use crate::buffer::SoftBuffer;
use crate::device::{SoftDevice, shared};
use crate::system::mac;

pub(super) fn element(of: MPSDataType) -> Option<Element> {
    accepted(Element::from_number(of.0))
}

define_class!(
    /// Sizes, strides and dtype of a matrix.
    #[unsafe(super(NSObject))]
    #[name = "MPSMatrixDescriptor"]
    #[ivars = MatrixDescriptor]
    pub(crate) struct SoftMatrixDescriptor;

    impl SoftMatrixDescriptor {
        #[unsafe(method_id(matrixDescriptorWithRows:columns:rowBytes:dataType:))]
        fn one(rows: usize, columns: usize, row_bytes: usize, of: MPSDataType) -> Option<Retained<Self>> {
            element(of).and_then(|element| Self::made(MatrixDescriptor::new(rows, columns, row_bytes, element)))
        }

        #[unsafe(method_id(matrixDescriptorWithDimensions:columns:rowBytes:dataType:))]
        fn dimensions(rows: usize, columns: usize, row_bytes: usize, of: MPSDataType) -> Option<Retained<Self>> {
            element(of).and_then(|element| Self::made(MatrixDescriptor::new(rows, columns, row_bytes, element)))
        }

        #[unsafe(method_id(matrixDescriptorWithRows:columns:matrices:rowBytes:matrixBytes:dataType:))]
        fn many(
            rows: usize,
            columns: usize,
            matrices: usize,
            row_bytes: usize,
            matrix_bytes: usize,
            of: MPSDataType,
        ) -> Option<Retained<Self>> {
            element(of).and_then(|element| {
                Self::made(MatrixDescriptor::batch(rows, columns, matrices, row_bytes, matrix_bytes, element))
            })
        }

        #[unsafe(method(rowBytesForColumns:dataType:))]
        fn row_bytes_for(columns: usize, of: MPSDataType) -> usize {
            element(of).map_or(0, |element| recommended_row_bytes(columns, element))
        }

        #[unsafe(method(rowBytesFromColumns:dataType:))]
        fn row_bytes_from(columns: usize, of: MPSDataType) -> usize {
            element(of).map_or(0, |element| recommended_row_bytes(columns, element))
        }

        #[unsafe(method(rows))]
        fn rows(&self) -> usize {
            self.ivars().rows()
        }

        #[unsafe(method(columns))]
        fn columns(&self) -> usize {
            self.ivars().columns()
        }

        #[unsafe(method(matrices))]
        fn matrices(&self) -> usize {
            self.ivars().matrices()
        }

        #[unsafe(method(rowBytes))]
        fn row_bytes(&self) -> usize {
            self.ivars().row_bytes()
        }

        #[unsafe(method(matrixBytes))]
        fn matrix_bytes(&self) -> usize {
            self.ivars().matrix_bytes()
        }

        #[unsafe(method(dataType))]
        fn data_type(&self) -> MPSDataType {
            MPSDataType(self.ivars().element().number())
        }
    }
);

impl SoftMatrixDescriptor {
    fn made(
        descriptor: Result<MatrixDescriptor, softmetal_formulas::rules::Refusal>,
    ) -> Option<Retained<Self>> {
        let this = Self::alloc().set_ivars(accepted(descriptor)?);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }
}

pub(crate) struct Placed<T> {
    buffer: Retained<SoftBuffer>,
    place: T,
}

define_class!(
    /// A matrix, or a batch of them, in a buffer.
    #[unsafe(super(NSObject))]
    #[name = "MPSMatrix"]
    #[ivars = Placed<Matrix>]
    pub(crate) struct SoftMatrix;

    impl SoftMatrix {
        #[unsafe(method_id(initWithBuffer:descriptor:))]
        fn init(
            this: Allocated<Self>,
            buffer: &SoftBuffer,
            descriptor: &SoftMatrixDescriptor,
        ) -> Option<Retained<Self>> {
            Self::placed(this, buffer, 0, descriptor)
        }

        #[unsafe(method_id(initWithBuffer:offset:descriptor:))]
        fn init_at(
            this: Allocated<Self>,
            buffer: &SoftBuffer,
            offset: usize,
            descriptor: &SoftMatrixDescriptor,
        ) -> Option<Retained<Self>> {
            Self::placed(this, buffer, offset, descriptor)
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }

        #[unsafe(method_id(data))]
        fn data(&self) -> Retained<SoftBuffer> {
            self.ivars().buffer.clone()
        }

        #[unsafe(method(offset))]
        fn offset(&self) -> usize {
            self.matrix().offset()
        }

        #[unsafe(method(rows))]
        fn rows(&self) -> usize {
            self.matrix().descriptor().rows()
        }

        #[unsafe(method(columns))]
        fn columns(&self) -> usize {
            self.matrix().descriptor().columns()
        }

        #[unsafe(method(matrices))]
        fn matrices(&self) -> usize {
            self.matrix().descriptor().matrices()
        }

        #[unsafe(method(rowBytes))]
        fn row_bytes(&self) -> usize {
            self.matrix().descriptor().row_bytes()
        }

        #[unsafe(method(matrixBytes))]
        fn matrix_bytes(&self) -> usize {
            self.matrix().descriptor().matrix_bytes()
        }

        #[unsafe(method(dataType))]
        fn data_type(&self) -> MPSDataType {
            MPSDataType(self.matrix().element().number())
        }
    }
);

/// Refuses a matrix whose last row ends in a gap beyond the buffer, on a Mac that counts the gap.
fn whole_rows(place: Matrix, length: usize) -> Result<Matrix, Refusal> {
    let descriptor = place.descriptor();
    let matrices = (descriptor.matrices() - 1) * descriptor.matrix_bytes();
    let counted = matrices + descriptor.rows() * descriptor.row_bytes();
    if !mac().whole_rows || place.offset() + counted <= length {
        return Ok(place);
    }
    let message =
        format!("offset {} and whole rows, {counted} bytes, in a buffer of {length}", place.offset());
    Err(refuse("mps-matrix-buffer-small", message))
}

impl SoftMatrix {
    fn placed(
        this: Allocated<Self>,
        buffer: &SoftBuffer,
        offset: usize,
        descriptor: &SoftMatrixDescriptor,
    ) -> Option<Retained<Self>> {
        if !mac().gpu.mps {
            return None;
        }
        let place = Matrix::new(buffer.memory().start(), buffer.len(), offset, *descriptor.ivars());
        let place = place.and_then(|place| whole_rows(place, buffer.len()));
        let this = this.set_ivars(Placed { buffer: buffer.retain(), place: accepted(place)? });
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    pub(crate) fn matrix(&self) -> &Matrix {
        &self.ivars().place
    }

    pub(crate) fn buffer(&self) -> &Retained<SoftBuffer> {
        &self.ivars().buffer
    }
}

define_class!(
    /// Length and dtype of a vector.
    #[unsafe(super(NSObject))]
    #[name = "MPSVectorDescriptor"]
    #[ivars = VectorDescriptor]
    pub(crate) struct SoftVectorDescriptor;

    impl SoftVectorDescriptor {
        #[unsafe(method_id(vectorDescriptorWithLength:dataType:))]
        fn one(length: usize, of: MPSDataType) -> Option<Retained<Self>> {
            element(of).and_then(|element| Self::made(VectorDescriptor::new(length, element)))
        }

        #[unsafe(method_id(vectorDescriptorWithLength:vectors:vectorBytes:dataType:))]
        fn many(
            length: usize,
            vectors: usize,
            vector_bytes: usize,
            of: MPSDataType,
        ) -> Option<Retained<Self>> {
            element(of).and_then(|element| {
                Self::made(VectorDescriptor::batch(length, vectors, vector_bytes, element))
            })
        }

        #[unsafe(method(vectorBytesForLength:dataType:))]
        fn vector_bytes_for(length: usize, of: MPSDataType) -> usize {
            element(of).map_or(0, |element| recommended_vector_bytes(length, element))
        }

        #[unsafe(method(length))]
        fn length(&self) -> usize {
            self.ivars().length()
        }

        #[unsafe(method(vectors))]
        fn vectors(&self) -> usize {
            self.ivars().vectors()
        }

        #[unsafe(method(vectorBytes))]
        fn vector_bytes(&self) -> usize {
            self.ivars().vector_bytes()
        }

        #[unsafe(method(dataType))]
        fn data_type(&self) -> MPSDataType {
            MPSDataType(self.ivars().element().number())
        }
    }
);

impl SoftVectorDescriptor {
    fn made(
        descriptor: Result<VectorDescriptor, softmetal_formulas::rules::Refusal>,
    ) -> Option<Retained<Self>> {
        let this = Self::alloc().set_ivars(accepted(descriptor)?);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }
}

define_class!(
    /// A vector, or a batch of them, in a buffer.
    #[unsafe(super(NSObject))]
    #[name = "MPSVector"]
    #[ivars = Placed<Vector>]
    pub(crate) struct SoftVector;

    impl SoftVector {
        #[unsafe(method_id(initWithBuffer:descriptor:))]
        fn init(
            this: Allocated<Self>,
            buffer: &SoftBuffer,
            descriptor: &SoftVectorDescriptor,
        ) -> Option<Retained<Self>> {
            Self::placed(this, buffer, 0, descriptor)
        }

        #[unsafe(method_id(initWithBuffer:offset:descriptor:))]
        fn init_at(
            this: Allocated<Self>,
            buffer: &SoftBuffer,
            offset: usize,
            descriptor: &SoftVectorDescriptor,
        ) -> Option<Retained<Self>> {
            Self::placed(this, buffer, offset, descriptor)
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }

        #[unsafe(method_id(data))]
        fn data(&self) -> Retained<SoftBuffer> {
            self.ivars().buffer.clone()
        }

        #[unsafe(method(offset))]
        fn offset(&self) -> usize {
            self.vector().offset()
        }

        #[unsafe(method(length))]
        fn length(&self) -> usize {
            self.vector().descriptor().length()
        }

        #[unsafe(method(vectors))]
        fn vectors(&self) -> usize {
            self.vector().descriptor().vectors()
        }

        #[unsafe(method(vectorBytes))]
        fn vector_bytes(&self) -> usize {
            self.vector().descriptor().vector_bytes()
        }

        #[unsafe(method(dataType))]
        fn data_type(&self) -> MPSDataType {
            MPSDataType(self.vector().element().number())
        }
    }
);

impl SoftVector {
    fn placed(
        this: Allocated<Self>,
        buffer: &SoftBuffer,
        offset: usize,
        descriptor: &SoftVectorDescriptor,
    ) -> Option<Retained<Self>> {
        if !mac().gpu.mps {
            return None;
        }
        let place = Vector::new(buffer.memory().start(), buffer.len(), offset, *descriptor.ivars());
        let this = this.set_ivars(Placed { buffer: buffer.retain(), place: accepted(place)? });
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    pub(crate) fn vector(&self) -> &Vector {
        &self.ivars().place
    }

    pub(crate) fn buffer(&self) -> &Retained<SoftBuffer> {
        &self.ivars().buffer
    }
}

pub(crate) fn load() {
    let _ = (SoftMatrixDescriptor::class(), SoftMatrix::class());
    let _ = (SoftVectorDescriptor::class(), SoftVector::class());
}
