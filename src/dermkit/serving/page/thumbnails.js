// Small and large pictures of the files that people add; a browser cannot show every format that the server reads.

const SIDE = 160; // pixels: enough for a list, and 100 photographs of 12 megapixels cost 10 MB and not 5 GB

/** Make the pictures of images, one after another, and call `done` with each. */
export async function makePictures(images, done) {
  for (const image of images) {
    image.preview = URL.createObjectURL(image.file);
    try {
      Object.assign(image, await thumbnail(image.file));
    } catch {
      URL.revokeObjectURL(image.preview);
      Object.assign(image, { preview: "", isUnshowable: true });
    }
    done(image);
  }
}

async function thumbnail(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const size = { width: bitmap.width, height: bitmap.height };
  bitmap.close();
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
  return { ...size, thumbnail: URL.createObjectURL(blob) };
}
