// Heat maps and nearest training cases of an image, as /v1/explain makes them: asked for once for each class.

import { explain } from "./api.js";

/** Return the map of an image for a class. takeCases: called with the nearest training cases that come with it. */
export async function mapOf(image, className, takeCases) {
  if (!image.maps.has(className)) {
    const answer = await explain(image.file, className, image.metadata);
    if (image.isUnshowable && !image.preview)
      image.preview = URL.createObjectURL(blobOf(answer.picture_jpeg, "image/jpeg"));
    image.maps.set(className, { ...answer, url: URL.createObjectURL(blobOf(answer.heat_map_png, "image/png")) });
    if (answer.nearest_cases.length && !image.cases.length) takeCases(image, answer.nearest_cases);
  }
  return image.maps.get(className);
}

function blobOf(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type });
}
